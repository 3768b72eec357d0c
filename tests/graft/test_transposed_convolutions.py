"""Transposed convolutions: the size of their output, forwards of their own, and every host."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, fx, nn

import surgery
from tests.laws.strategies import assert_near, randomise_added, same_bits, snapshot
from tests.models import randomise

METHODS = ("lora(2)", "lora(2, dropout = 0.5)", "dora(2)", "ia3", "ia3_input", "shift", "loha(2)")


class Up(nn.Module):
    """Halves an image and doubles it again, to the size that it had."""

    def __init__(self, positional: bool = False, groups: int = 2):
        super().__init__()
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=groups)
        self.positional = positional

    def forward(self, x: Tensor) -> Tensor:
        small = functional.gelu(self.down(x))
        size = x.shape[-2:]
        return self.up(small, size) if self.positional else self.up(small, output_size=size)


def built(positional: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = randomise(Up(positional), 1).double().eval()
    images = ((2, 4, 8, 9), (2, 4, 7, 8), (1, 4, 10, 6), (4, 9, 8))
    return model, tuple(torch.randn(shape, dtype=torch.float64) for shape in images)


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_output_has_the_size_that_is_asked_for(method: str, positional: bool) -> None:
    model, images = built(positional)
    expected, before = [model(x) for x in images], snapshot(model)
    surgery.apply(model, f"on `up` apply {method}", example_inputs=images[0], seed=0)
    for x, base in zip(images, expected, strict=True):
        assert_near(model(x), base, torch.float64)
    randomise_added(model)
    adapted = [model(x) for x in images]
    assert [y.shape for y in adapted] == [x.shape for x in images]
    assert not torch.allclose(adapted[0], expected[0])
    with surgery.merged(model):
        for x, y in zip(images, adapted, strict=True):
            assert_near(model(x), y, torch.float64)
    surgery.remove(model)
    assert same_bits(snapshot(model), before)


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_traced_graph_gives_the_same(method: str, positional: bool) -> None:
    model, (x, *_) = built(positional)
    graph = fx.symbolic_trace(copy.deepcopy(model))
    for one in (model, graph):
        surgery.apply(one, f"on `up` apply {method}", example_inputs=x, seed=0)
        randomise_added(one)
    assert_near(graph(x), model(x), torch.float64)


def test_it_exports() -> None:
    model, (x, *_) = built()
    surgery.apply(model, "on `up` apply lora(2)  on `up` apply ia3", example_inputs=x, seed=0)
    randomise_added(model)
    assert_near(torch.export.export(model, (x,)).module()(x), model(x), torch.float64)


def test_it_compiles_to_one_graph() -> None:
    model, images = built()
    surgery.apply(model, "on `up` apply dora(2)  on `up` apply ia3", example_inputs=images[0])
    randomise_added(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for x in images[:2]:
        assert_near(compiled(x), model(x), torch.float64)


def test_all_promises_hold() -> None:
    model, (x, *_) = built()
    spec = "on ConvTranspose2d apply lora(2)  on ConvTranspose2d apply dora(2)  train bias in `up`"
    found = surgery.verify(model, spec, example_inputs=x)
    assert found.ok, str(found)


def test_freeze_and_train_know_it() -> None:
    model, (x, *_) = built()
    surgery.apply(model, "train ConvTranspose2d", example_inputs=x)
    assert set(surgery.trainable(model)) == {"up.weight", "up.bias"}


class Standardised(nn.ConvTranspose2d):
    """Standardises its weight."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        weight = self.weight - self.weight.mean((0, 2, 3), keepdim=True)
        more = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        settings = self.stride, self.padding, more, self.groups, self.dilation
        return functional.conv_transpose2d(input, weight, self.bias, *settings)


class Apart(nn.ConvTranspose2d):
    """Adds its bias apart from the product, and clamps its input."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        more = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        settings = self.stride, self.padding, more, self.groups, self.dilation
        y = functional.conv_transpose2d(input.clamp(-1, 1), self.weight, None, *settings)
        return y + self.bias.view(-1, 1, 1)


@pytest.mark.parametrize("cls", [Standardised, Apart])
@pytest.mark.parametrize("method", METHODS)
def test_a_forward_of_its_own_sees_the_changed_weight(cls: Any, method: str) -> None:
    model, images = built()
    model.up.__class__ = cls
    base = model(images[0])
    spec = f"on `up` apply {method}"
    if cls is Standardised and "dropout" in method:
        with pytest.raises(surgery.SurgeryError, match="S419"):
            surgery.apply(model, spec, example_inputs=images[0], seed=0)
        return
    surgery.apply(model, spec, example_inputs=images[0], seed=0)
    assert_near(model(images[0]), base, torch.float64)
    randomise_added(model)
    adapted = [model(x) for x in images]
    surgery.merge(model)
    for x, y in zip(images, adapted, strict=True):
        assert_near(model(x), y, torch.float64)
