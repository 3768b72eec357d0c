"""What a spec finds in a program is what it finds in the model, or it is refused: by kinds of layer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import surgery
from tests.models import build, randomise

# PyTorch's own copies of programs warn of what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")

SIZE = 8


class Alike(nn.Module):
    """Does what `nn.Linear` does, and is none."""

    def __init__(self, biased: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(SIZE, SIZE))
        self.bias = nn.Parameter(torch.empty(SIZE)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Written(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class Turned(nn.Linear):
    """A layer that multiplies with the transposed weight, as Falcon's do."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class Router(nn.Module):
    """Has a weight and does more than to multiply with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(SIZE, SIZE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = functional.linear(x.reshape(-1, SIZE), self.weight)
        best, places = scores.softmax(-1).topk(2)
        return scores, best / best.sum(-1, keepdim=True) + places


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alike, self.bare, self.written = Alike(), Alike(False), Written(SIZE, SIZE)
        self.plain, self.turned, self.router = nn.Linear(SIZE, SIZE), Turned(SIZE, SIZE), Router()

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.written(self.bare(self.alike(x)).relu()).relu())
        _, best = self.router(x)
        return self.turned(x).relu() * best.sum(-1, keepdim=True).unflatten(0, x.shape[:-1])


METHODS = ("lora(2)", "dora(2)", "ia3", "vera(3)", "lokr(1)", "loha(2)", "shift")
PLACES = {
    "Written": True,
    "Alike": True,
    "`written`|`plain`|`bare`": True,
    "Linear": True,
    "`turned`": True,
    "`router`": True,
}


def outcome(model: Any, spec: str, inputs: dict[str, Tensor], **read: Any) -> Any:
    """Names and values of what trains, and the result with other values; the error if there is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", surgery.SurgeryWarning)
            adapted = surgery.apply(model, spec, seed=0, **read)
    except surgery.SurgeryError as refused:
        return refused
    adapted = model if isinstance(model, nn.Module) else adapted
    trained = surgery.trainable(adapted)
    first = {name: value.detach().clone() for name, value in trained.items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in trained.values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
        run = adapted if isinstance(adapted, nn.Module) else adapted.module()
        result = pytree.tree_leaves(run(**inputs))[0]
    return first, result


def check(model: nn.Module, program: Any, spec: str, inputs: dict[str, Tensor]) -> bool:
    """Whether the program takes ``spec``; if so it becomes what the model does."""
    found = outcome(program, spec, inputs)
    if isinstance(found, surgery.SurgeryError):
        own = outcome(copy.deepcopy(model), spec, inputs, example_inputs=inputs)
        refused = isinstance(own, surgery.SurgeryError)
        known = own.diagnostics[0].code if refused else None
        assert found.diagnostics[0].help or found.diagnostics[0].code == known
        return False
    first, result = found
    expected, other = outcome(copy.deepcopy(model), spec, inputs, example_inputs=inputs)
    assert list(first) == list(expected)
    assert all(torch.equal(first[name], expected[name]) for name in first)
    torch.testing.assert_close(result, other, rtol=1e-4, atol=1e-5)
    return True


def test_layers_of_every_class_are_found_in_programs() -> None:
    model = randomise(Model()).eval()
    inputs = {"x": torch.randn(3, SIZE)}
    program = torch.export.export(model, (), inputs, strict=False)
    for i, (place, taken) in enumerate(PLACES.items()):
        method = METHODS[i % len(METHODS)]
        assert check(model, program, f"on {place} apply {method}", inputs) == taken, (place, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_mixture_of_experts_is_adapted_alike_or_refused(method: str) -> None:
    model: Any = build("mixtral")
    model.config.use_cache = False
    inputs = {"input_ids": torch.randint(3, 32, (2, 6), generator=torch.Generator().manual_seed(0))}
    program = torch.export.export(model, (), inputs, strict=False)
    assert check(model, program, f"on Linear apply {method}", inputs)
    assert check(model, program, f"on q|o apply {method} train norm", inputs)
    for place in ("experts", "router"):
        taken = check(model, program, f"on {place} apply {method}", inputs)
        # What is added to a product is no other weight of an expert (S413 in the model, too).
        assert taken or (place, method) == ("experts", "shift")
