"""`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`: a linear map over patches of the input."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from torch import Tensor, nn

from surgery.layers.kind import Layer, LayerKind
from surgery.layers.products import operator_of


def convolve(module: Any, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of ``module``, padded as it pads, with another kernel."""
    return module._conv_forward(x, kernel, bias)


class Convolution(LayerKind):
    """Grouped or not, dilated, with any stride and any way to pad."""

    name = "convolution"
    classes = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    methods = ("forward", "_conv_forward")
    products = dict.fromkeys(("conv1d", "conv2d", "conv3d"), operator_of)
    run = staticmethod(convolve)

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
