"""Models with prefixes and prompts, compiled and exported: how often, and where that gives up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as functional
from torch import Tensor, nn

import surgery
from tests.laws.strategies import randomise_added
from tests.models import build, randomise

# Torch makes new ones of its own functions while it compiles, and looks at every tensor's gradient.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

PREFIX, PROMPT = "on attention apply prefix(3)", "on tokens apply prompt(4)"


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def text(length: int) -> dict[str, Any]:
    ids = torch.randint(3, 96, (2, length))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


@pytest.mark.parametrize("spec", [PROMPT, "unipelt"])
def test_one_graph_for_all_lengths(spec: str) -> None:
    """And one more for the base, when the adaptation is off."""
    model = randomise_added(surgery.apply(build("llama"), spec, seed=0)).train()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for length in (8, 9, 5):
        given = text(length)
        torch.testing.assert_close(compiled(**given).logits, model(**given).logits)
    assert counter.frame_count == 1
    with surgery.disabled(model):
        torch.testing.assert_close(compiled(**given).logits, model(**given).logits)
    assert counter.frame_count == 2
    torch.testing.assert_close(compiled(**given).logits, model(**given).logits)
    assert counter.frame_count == 2


class Broken(nn.Module):
    """An attention in which the compiler gives up before its core."""

    def __init__(self, core: Any = functional.scaled_dot_product_attention):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t(x).unflatten(-1, (2, 4)).transpose(1, 2) for t in (self.q, self.k, self.v))
        torch._dynamo.graph_break()
        return x + self.o(self.core(q, k, v).transpose(1, 2).flatten(2))


def layers(spec: str) -> tuple[nn.Module, Tensor]:
    model, x = randomise(nn.Sequential(Broken(), Broken(), Broken())), torch.randn(2, 5, 8)
    return randomise_added(surgery.apply(model, spec, example_inputs=x, seed=0)), x


@pytest.mark.parametrize("spec", [PREFIX, "on attention gated prefix(3)"])
def test_an_attention_with_a_break_in_it_runs_uncompiled(spec: str) -> None:
    """Each layer with its own prefix, which the compiler would not tell apart."""
    model, x = layers(spec)
    compiled = torch.compile(model, backend="eager")
    results: list[Tensor] = []
    gradients: list[dict[str, Tensor]] = []
    for run in (model, compiled):
        results.append(run(x))
        results[-1].square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in surgery.trainable(model).items()})
        model.zero_grad()
    torch.testing.assert_close(results[1], results[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_parts_of_an_attention_that_are_compiled_by_themselves() -> None:
    model, x = layers(PREFIX)
    expected = model(x)
    model[0].q.compile(backend="eager")
    model[1].core = torch.compile(functional.scaled_dot_product_attention, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(model(x), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spec", "strict"), [("unipelt", True), ("unipelt", False), (PROMPT, False)]
)
def test_exports(spec: str, strict: bool) -> None:
    """A program of a model for sequences of any length."""
    model = randomise_added(surgery.apply(build("bert"), spec, seed=0)).eval()
    given, other = ({k: v for k, v in text(n).items() if k != "use_cache"} for n in (8, 11))
    length = {1: torch.export.Dim("length", min=2, max=60)}
    shapes = {"input_ids": length, "attention_mask": length}
    program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=strict)
    for inputs in (given, other):
        torch.testing.assert_close(program.module()(**inputs)[0], model(**inputs)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["q_proj", "mlp", "self_attn"])
def test_compiled_parts_within_checkpoints(part: str, reentrant: bool) -> None:
    """Of two forwards, each part that runs again is given the mask of its own."""
    model = randomise_added(surgery.apply(build("llama"), "unipelt", seed=0)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    texts = text(8), text(6)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        one, other = (model(**given)[0].square().mean() for given in texts)
        (one - 0.5 * other).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    for name, module in model.named_modules():
        if name.endswith(part):
            module.compile(backend="eager")
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
