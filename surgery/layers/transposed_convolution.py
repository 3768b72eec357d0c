"""`nn.ConvTranspose1d`, `2d` and `3d`: a linear map over patches of the input spread out.

Output p is the sum over channels i and places k of W[i, o, k] x[i, q] with q · stride + k · dilation
- padding = p. So o is a row of a matrix over what lies under its kernel, with zeros between the
elements of the input, as it is for a convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.layers.kind import Call, Layer, LayerKind
from surgery.layers.products import operator_of

_FUNCTIONS = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def convolve_transposed(
    module: Any,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    output_size: list[int] | None = None,
) -> Tensor:
    """The transposed convolution of ``module``, to ``output_size``, with another kernel."""
    spatial = len(module.kernel_size)
    stride, padding, dilation = module.stride, module.padding, module.dilation
    more = module._output_padding(
        x, output_size, stride, padding, module.kernel_size, spatial, dilation
    )
    convolve = _FUNCTIONS[spatial - 1]
    return convolve(x, kernel, bias, stride, padding, more, module.groups, dilation)


class TransposedConvolution(LayerKind):
    """Grouped or not, dilated, with any stride, padding, output padding and size of the output."""

    name = "transposed convolution"
    classes = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    methods = ("forward", "_output_padding")
    products = dict.fromkeys((f.__name__ for f in _FUNCTIONS), operator_of)
    run = staticmethod(convolve_transposed)

    def read(self, module: Any) -> Layer:
        channels, out, *kernel = module.weight.shape
        groups = int(module.groups)
        columns = (channels // groups, *kernel)
        sizes = (out * groups, prod(columns))
        return Layer(self, *sizes, spatial=len(kernel), groups=groups, columns=columns)

    def as_matrix(self, call: Call, layer: Layer, weight: Any) -> Any:
        return call(torch.flatten, _turned(call, layer.groups, weight), 1)

    def as_weight(self, call: Call, layer: Layer, matrix: Any) -> Any:
        return _turned(call, layer.groups, call("unflatten", matrix, 1, layer.columns))

    def examples(self, module: Any, layer: Layer, weight: Tensor) -> Iterator[tuple[Tensor]]:
        channels = layer.columns[0] * layer.groups
        yield (weight.new_ones(2, channels, *[4] * layer.spatial),)
        yield (weight.new_ones(2, *[4] * layer.spatial, channels),)


def _turned(call: Call, groups: int, kernel: Any) -> Any:
    """[groups · a, b, …] → [groups · b, a, …]: rows are channels of the input, or of the result."""
    if groups == 1:
        return call(torch.transpose, kernel, 0, 1)
    split = call("unflatten", kernel, 0, (groups, -1))
    return call(torch.flatten, call(torch.transpose, split, 1, 2), 0, 1)
