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

from surgery.layers.convolution import each
from surgery.layers.kind import Call, Layer, LayerKind, Reads, holding
from surgery.layers.products import operator_of

_CLASSES: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EXPORTED = (
    torch.ops.aten.conv_transpose1d.default,
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.conv_transpose3d.input,
)
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


def _made(given: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    stride, padding, beyond, groups, dilation = (given(i) for i in (3, 4, 5, 6, 7))
    spatial = weight.dim() - 2
    made = _CLASSES[spatial - 1](
        weight.shape[0],
        weight.shape[1] * (groups or 1),
        tuple(weight.shape[2:]),
        stride=each(stride, 1, spatial),
        padding=each(padding, 0, spatial),
        output_padding=each(beyond, 0, spatial),
        groups=groups or 1,
        bias=bias is not None,
        dilation=each(dilation, 1, spatial),
        device="meta",
    )
    return holding(made, weight, bias)


def _made_decomposed(given: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """The same of `aten.convolution`, which decompositions leave of all convolutions."""
    places = {5: 7, 6: 8, 7: 5}

    def named(at: int) -> Any:
        return given(places.get(at, at))

    return _made(named, weight, bias)


class TransposedConvolution(LayerKind):
    """Grouped or not, dilated, with any stride, padding, output padding and size of the output."""

    name = "transposed convolution"
    classes = _CLASSES
    methods = ("forward", "_output_padding")
    products = dict.fromkeys((f.__name__ for f in _FUNCTIONS), operator_of)
    run = staticmethod(convolve_transposed)
    exported = dict.fromkeys(_EXPORTED, Reads(0, 1, 2, _made)) | {
        torch.ops.aten.convolution.default: Reads(0, 1, 2, _made_decomposed, lambda given: given(6))
    }

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
