"""Methods at a layer and at what the layer is in: in a graph as in the model, in any order."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from torch import Tensor, fx, nn

import surgery
from tests.models import randomise

# PyTorch's own copies of programs warn of what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")

SIZE = 6


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.feed = nn.LayerNorm(SIZE), FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed(self.norm(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(3, SIZE), Block(), nn.Linear(SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)))


ON_LAYERS = ("lora(2)", "dora(2)", "ia3", "shift")
ON_BLOCKS = ("sequential adapter(2)", "parallel adapter(2)", "gated sequential adapter(2)")
PLACES = {
    **dict.fromkeys(("`block.feed.down`", "`block.feed.up`", "Linear", "`embed`"), ON_LAYERS),
    **dict.fromkeys(("mlp", "`block.feed`", "`block`", "`block.norm`"), ON_BLOCKS),
}


@cache
def subject() -> tuple[nn.Module, Tensor, Any]:
    model = randomise(Model()).eval()
    x = torch.randn(2, 3, 3)
    return model, x, torch.export.export(model, (x,))


@st.composite
def specs(draw: st.DrawFn) -> str:
    places = draw(st.lists(st.sampled_from(sorted(PLACES)), min_size=2, max_size=4))
    statements: list[str] = []
    for i, place in enumerate(places):
        method = draw(st.sampled_from(PLACES[place]))
        apply = "apply " if method in ON_LAYERS else ""
        statements.append(f"on {place} {apply}{method} as m{i}")
    return "  ".join(statements)


def moved(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in surgery.trainable(model).values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)
    return model


@settings(max_examples=6, deadline=None)
@given(specs())
def test_layers_are_adapted_within_what_is_adapted_around_them(spec: str) -> None:
    model, x, _ = subject()
    eager, traced = copy.deepcopy(model), fx.symbolic_trace(copy.deepcopy(model))
    for one in (eager, traced):
        moved(surgery.apply(one, spec, seed=0, example_inputs=x))
    torch.testing.assert_close(traced(x), eager(x), rtol=1e-3, atol=1e-4)


@settings(max_examples=2, deadline=None)
@given(specs())
def test_a_program_is_adapted_as_its_model_and_undone(spec: str) -> None:
    model, x, program = subject()
    eager = moved(surgery.apply(copy.deepcopy(model), spec, seed=0, example_inputs=x))
    adapted = moved(surgery.apply(program, spec, seed=0))
    torch.testing.assert_close(adapted.module()(x), eager(x), rtol=1e-3, atol=1e-4)
    assert torch.equal(surgery.remove(adapted).module()(x), program.module()(x))
