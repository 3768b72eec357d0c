"""`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`: a linear map over patches of the input."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from surgery.layers.kind import Layer, LayerKind, Reads, holding
from surgery.layers.products import operator_of

_CLASSES: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = (torch.ops.aten.conv1d, torch.ops.aten.conv2d, torch.ops.aten.conv3d)


def convolve(module: Any, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of ``module``, padded as it pads, with another kernel."""
    return module._conv_forward(x, kernel, bias)


def each(given: Any, default: int, spatial: int) -> tuple[int, ...]:
    """A setting for every axis, of which exported programs keep one, all or none."""
    values = [default] if given is None else list(given)
    return tuple(values * spatial if len(values) == 1 else values)


def _made(given: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    stride, padding, dilation, groups = (given(i) for i in (3, 4, 5, 6))
    spatial = weight.dim() - 2
    made = _CLASSES[spatial - 1](
        weight.shape[1] * (groups or 1),
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=each(stride, 1, spatial),
        padding=padding if isinstance(padding, str) else each(padding, 0, spatial),
        dilation=each(dilation, 1, spatial),
        groups=groups or 1,
        bias=bias is not None,
        device="meta",
    )
    return holding(made, weight, bias)


def _made_decomposed(given: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """The same of `aten.convolution`, which decompositions leave of all convolutions."""
    places = {6: 8}

    def named(at: int) -> Any:
        return given(places.get(at, at))

    return _made(named, weight, bias)


class Convolution(LayerKind):
    """Grouped or not, dilated, with any stride and any way to pad."""

    name = "convolution"
    classes = _CLASSES
    methods = ("forward", "_conv_forward")
    products = dict.fromkeys(("conv1d", "conv2d", "conv3d"), operator_of)
    run = staticmethod(convolve)
    exported = dict.fromkeys(
        (overload for f in _FUNCTIONS for overload in (f.default, f.padding)), Reads(0, 1, 2, _made)
    ) | {
        torch.ops.aten.convolution.default: Reads(
            0, 1, 2, _made_decomposed, lambda given: not given(6)
        )
    }

    def read(self, module: Any) -> Layer:
        out, *columns = module.weight.shape
        spatial, groups = len(module.kernel_size), int(module.groups)
        sizes = (out, prod(columns))
        return Layer(self, *sizes, spatial=spatial, groups=groups, columns=tuple(columns))

    def examples(self, module: Any, layer: Layer, weight: Tensor) -> Iterator[tuple[Tensor]]:
        channels, *kernel = layer.columns
        dilation = getattr(module, "dilation", (1,) * layer.spatial)
        sizes = [d * (k - 1) + 4 for k, d in zip(kernel, dilation, strict=True)]
        yield (weight.new_ones(2, channels * layer.groups, *sizes),)
        yield (weight.new_ones(2, *sizes, channels * layer.groups),)
