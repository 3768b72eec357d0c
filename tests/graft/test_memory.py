"""A prompt in an encoder: the decoder attends to its states, and the caller sees none of them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

import surgery
from tests.graft.test_tokens import a_batch, in_front, longer, padded, shapes
from tests.laws.strategies import randomise_added
from tests.models import build, randomise

N = 3
MODELS = ["t5", "bart"]
pytestmark = pytest.mark.filterwarnings("ignore")


def prompted(name: str, spec: str = f"on tokens[0] apply prompt({N})") -> tuple[nn.Module, Any]:
    """The base and the same with a random prompt."""
    base = build(name)
    return base, randomise_added(surgery.apply(copy.deepcopy(base), spec, seed=0))


def inputs(length: int = 4) -> dict[str, Tensor]:
    ids, mask = padded(a_batch(), "right")
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": a_batch(1, length)}


def expected(base: Any, model: nn.Module, given: dict[str, Tensor], seen: bool = True) -> Tensor:
    """The base on embeddings behind the prompt; its decoder sees all states, or those of tokens."""
    prompt = next(p for n, p in surgery.trainable(model).items() if n.endswith("prompt.P"))
    behind = in_front(base, prompt, given["input_ids"])
    mask = longer(given["attention_mask"])
    states = base.get_encoder()(inputs_embeds=behind, attention_mask=mask)[0]
    if not seen:
        states, mask = states[:, N:], given["attention_mask"]
    memory = BaseModelOutput(last_hidden_state=states)
    given = {"attention_mask": mask, "decoder_input_ids": given["decoder_input_ids"]}
    return base(encoder_outputs=memory, **given).logits


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_decoder_attends_to_it_unless_told_not_to(name: str, seen: bool) -> None:
    within = "" if seen else f" on tokens[0] apply encoder_only({N})"
    base, model = prompted(name, f"on tokens[0] apply prompt({N}){within}")
    given = inputs()
    torch.testing.assert_close(model(**given).logits, expected(base, model, given, seen))
    assert not torch.allclose(expected(base, model, given, not seen), model(**given).logits)


@pytest.mark.parametrize("spec", ["on tokens[0] apply prompt(3)", "on tokens apply prompt(3)"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_is_returned_has_the_shapes_of_the_base(name: str, named: bool, spec: str) -> None:
    base, model = prompted(name, spec)
    for m in (base, model):
        m.set_attn_implementation("eager")
    more = {"output_hidden_states": True, "output_attentions": True, "return_dict": named}
    for length in (4, 5, 5 + N):
        given = {**inputs(length), **more}
        assert shapes(model(**given)) == shapes(base(**given))
        del given["attention_mask"]
        assert shapes(model(**given)) == shapes(base(**given))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_states_of_an_encoder_that_ran_before(name: str) -> None:
    _, model = prompted(name)
    given = inputs()
    whole = model(**given)
    memory = model.get_encoder()(given["input_ids"], attention_mask=given["attention_mask"])
    assert memory.last_hidden_state.shape[1] == 5 + N
    rest = {k: v for k, v in given.items() if k != "input_ids"}
    again = model(encoder_outputs=memory, **rest)
    assert torch.equal(again.logits, whole.logits)
    assert torch.equal(again.encoder_last_hidden_state, memory.last_hidden_state)
    assert torch.equal(whole.encoder_last_hidden_state, memory.last_hidden_state[:, N:])
    rest["attention_mask"] = longer(given["attention_mask"])
    assert torch.equal(model(encoder_outputs=memory, **rest).logits, whole.logits)
    rest["attention_mask"] = rest["attention_mask"][:, 1:]
    with pytest.raises(surgery.SurgeryError, match=r"S530.*mask over 7 tokens does not fit 8"):
        model(encoder_outputs=memory, **rest)


@pytest.mark.parametrize("spec", ["on tokens[0] apply prompt(3)", "on tokens apply prompt(3)"])
@pytest.mark.parametrize("name", MODELS)
def test_generation_with_every_cache(name: str, spec: str) -> None:
    _, model = prompted(name, spec)
    given = inputs()
    del given["decoder_input_ids"]
    for beams in (1, 3):
        more = {**given, "max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams}
        wanted = model.generate(**more, use_cache=False)
        assert torch.equal(model.generate(**more), wanted)
        assert torch.equal(model.generate(**more, cache_implementation="static"), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_under_checkpointing(name: str) -> None:
    _, model = prompted(name)
    given = {**inputs(), "labels": a_batch(2, 4)}
    del given["decoder_input_ids"]
    gradients: list[Tensor] = []
    for stored in (False, True):
        model.train().zero_grad()
        torch.manual_seed(0)
        if stored:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**given, use_cache=False).loss.backward()
        gradients.append(next(iter(surgery.trainable(model).values())).grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_copies_pickles_and_the_way_back(name: str) -> None:
    base, model = prompted(name)
    given = inputs()
    wanted = model(**given).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**given).logits, wanted)
        next(iter(surgery.trainable(other).values())).zero_()
        assert not torch.equal(other(**given).logits, wanted)
    assert torch.equal(surgery.remove(model)(**given).logits, base(**given).logits)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_compiled_for_any_length(name: str) -> None:
    _, model = prompted(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for length in (5, 7):
        ids, mask = padded(a_batch(length=length), "right")
        given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": a_batch(1, 4)}
        got, wanted = (m(**given, use_cache=False) for m in (compiled, model))
        torch.testing.assert_close(got.logits, wanted.logits)
        assert got.encoder_last_hidden_state.shape[1] == length


def pooled() -> Any:
    small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
    small |= {"num_attention_heads": 4, "num_hidden_layers": 2}
    stacks = (BertConfig(**small), BertConfig(**small, is_decoder=True, add_cross_attention=True))
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*stacks)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return randomise(EncoderDecoderModel(config)).eval()


@torch.no_grad()
def test_an_encoder_with_a_pooler() -> None:
    base = pooled()
    model = randomise_added(
        surgery.apply(copy.deepcopy(base), "on tokens[0] apply prompt(3)", seed=0)
    )
    given = inputs()
    output = model(**given)
    torch.testing.assert_close(output.logits, expected(base, model, given))
    assert output.encoder_last_hidden_state.shape[1] == 5
    memory = model.encoder(given["input_ids"], attention_mask=given["attention_mask"])
    states = memory.last_hidden_state
    assert torch.equal(states[:, N:], output.encoder_last_hidden_state)
    torch.testing.assert_close(memory.pooler_output, base.encoder.pooler(states[:, N:]))


def test_states_that_lose_their_gradients_are_an_error() -> None:
    """Those of a prompt pass a pooler by, from a layer under reentrant checkpointing."""
    model = randomise_added(surgery.apply(pooled(), "on tokens[0] apply prompt(3)", seed=0)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    prompt = next(iter(surgery.trainable(model).values()))
    gradients: list[Tensor] = []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            with pytest.raises(surgery.SurgeryError, match=r"S439[\s\S]*use_reentrant=False"):
                model(**inputs(), use_cache=False)
            continue
        model.zero_grad()
        model(**inputs(), use_cache=False).logits.square().mean().backward()
        gradients.append(prompt.grad.clone())
    torch.testing.assert_close(*gradients)


def test_all_of_a_prompt_stays_in_its_encoder_or_none() -> None:
    spec = "on tokens[0] apply prompt(3) on tokens[0] apply encoder_only(2)"
    with pytest.raises(surgery.SurgeryError, match=r"S416.*2 vectors stay.*and 3 join"):
        surgery.plan(build("t5"), spec)
    with pytest.raises(surgery.SurgeryError, match=r"S403.*needs a decoder that attends"):
        surgery.plan(build("llama"), "on tokens apply prompt(3) on tokens apply encoder_only(3)")
