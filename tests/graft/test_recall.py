"""Gates that average over real tokens, where forwards run again under checkpointing."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import surgery
from surgery.graft.channel import Slot
from tests.laws.strategies import randomise_added
from tests.models import build

SPEC = """
on q|v gated lora(2)
on attention gated prefix(3)
on mlp layer_gated pfeiffer adapter(4)
"""


def text(length: int, padded: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 96, (2, length))
    mask = torch.ones_like(ids)
    mask[1, length - padded :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def adapted(name: str) -> nn.Module:
    model = build(name).train()
    for module in model.modules():
        for attribute in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return randomise_added(surgery.apply(model, SPEC, seed=0))


def gradients(model: nn.Module, run: Callable[[], None]) -> dict[str, Tensor]:
    model.zero_grad()
    run()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert any("gated" in name for name in found)
    return found


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert", "bart"])
def test_two_forwards_before_one_backward(name: str, reentrant: bool) -> None:
    """As in training on pairs: each is recomputed with its own padding, of one length or two."""
    model = adapted(name)
    pairs = [(text(7, 3), text(7, 1)), (text(7, 2), text(9, 4))]

    def together() -> None:
        for one, other in pairs:
            first, second = (model(**given)[0].square().mean() for given in (one, other))
            with torch.no_grad():
                model(**text(5, 1))
            (first - 0.5 * second).backward()

    expected = gradients(model, together)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model, together)
    assert found.keys() >= expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_any_order_of_backwards() -> None:
    model = adapted("llama")
    texts = [text(6, n) for n in range(1, 5)]

    def mixed() -> None:
        a, b = (model(**given)[0].square().mean() for given in texts[:2])
        a.backward()
        c = model(**texts[2])[0].square().mean()
        d = model(**texts[3])[0].square().mean()
        (2 * b + c).backward()
        d.backward()

    expected = gradients(model, mixed)
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, mixed)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_whole_models_that_run_again(reentrant: bool) -> None:
    model = adapted("bert")
    pair = text(7, 3), text(7, 1)

    def run(again: bool) -> None:
        total = torch.zeros(())
        for given in pair:
            embedded = model.get_input_embeddings()(given["input_ids"]).requires_grad_()

            def score(embedded: Tensor, mask: Tensor = given["attention_mask"]) -> Tensor:
                return model(inputs_embeds=embedded, attention_mask=mask)[0].square().mean()

            made = (
                checkpoint(score, embedded, use_reentrant=reentrant) if again else score(embedded)
            )
            total = total + (1 + total.detach()) * made
        total.backward()

    model.eval()
    expected, found = (gradients(model, lambda again=again: run(again)) for again in (False, True))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_what_no_forward_fits_is_an_error() -> None:
    model = adapted("llama")
    model.activation_checkpointing_enable({"use_reentrant": False})
    given = text(6, 2)
    first = model(**given)[0].square().mean()
    expected = gradients(model, lambda: first.backward(retain_graph=True))
    model(**text(6, 1))[0].square().mean().backward()
    again = gradients(model, lambda: first.backward(retain_graph=True))
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    table = model.get_input_embeddings().weight
    found = model(**given)[0].square().mean()
    for layer in model.model.layers:
        layer.input_layernorm.weight.data.mul_(1.5)
    with pytest.raises(
        surgery.SurgeryError, match=r"S433[\s\S]*`attention_mask` of `model`[\s\S]*none"
    ):
        found.backward()
    assert table.grad is None
    one = model(**given)[0].square().mean()
    other = model(given["input_ids"], attention_mask=given["attention_mask"].flip(0))[0]
    with pytest.raises(surgery.SurgeryError, match=r"S433[\s\S]*several fit"):
        (one + other.square().mean()).backward()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_what_may_run_again_is_kept_by_its_gradients_alone(name: str, reentrant: bool) -> None:
    """However many forwards wait for their backward; nothing where none is to come."""
    model = adapted(name)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    slots = {s for m in model.modules() for s in vars(m).values() if isinstance(s, Slot)}

    def waiting() -> int:
        return max(len([r for ref in slot.past if (r := ref()) is not None]) for slot in slots)

    losses = [model(**text(5, 1 + n % 3))[0].square().mean() for n in range(20)]
    assert waiting() == 20
    copied = [v for m in copy.deepcopy(model).modules() for v in vars(m).values()]
    held = {slot for slot in copied if isinstance(slot, Slot)}
    assert len(held) == len(slots) == len(pickle.loads(pickle.dumps(slots)))
    assert not any(slot.past for slot in held)
    sum(losses[5:], losses[4]).backward()
    del losses[3:]
    assert waiting() == 3
    masks: list[weakref.ref[Tensor]] = []
    for recording in (False, True):
        model.train(recording)
        given = text(5, 1)
        masks.append(weakref.ref(given["attention_mask"]))
        with torch.set_grad_enabled(recording):
            loss = model(**given)[0].sum()
        if recording:
            loss.backward()
        del given, loss
    del losses
    assert waiting() == 0
    assert [mask() for mask in masks] == [None, None]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_prompts_of_forwards_of_several_lengths(name: str, reentrant: bool) -> None:
    """The last layer drops the prompt of its own forward, and not of the last that came."""
    model = build(name)
    model = randomise_added(surgery.apply(model, "on tokens apply prompt(3)", seed=0)).train()
    for module in model.modules():
        for attribute in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    texts = [text(7, 2), text(4, 1), text(9, 3)]

    def run() -> None:
        losses = [model(**given, use_cache=False)[0].square().mean() for given in texts]
        with torch.no_grad():
            model(**text(5, 1))
        (losses[0] - losses[1] + 2 * losses[2]).backward()

    def all_gradients() -> dict[str, Tensor]:
        model.zero_grad()
        run()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = all_gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = all_gradients()
    assert expected
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)


def test_gates_read_masks_that_generation_makes_beforehand() -> None:
    """Caches of a fixed size come with a mask [batch, 1, queries, keys]."""
    model = adapted("llama").eval()
    ids = torch.randint(3, 96, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    settings = {"max_new_tokens": 4, "do_sample": False, "disable_compile": True}
    found, expected = (
        model.generate(ids, attention_mask=mask, cache_implementation=cache, **settings)
        for cache in ("static", None)
    )
    assert torch.equal(found, expected)
