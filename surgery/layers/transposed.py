"""A linear layer whose weight is [in, out]: transformers' `Conv1D` (GPT-2 and its kin)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgery.huggingface.layers import CONV1D
from surgery.layers.kind import Call, Layer, LayerKind, Reads
from surgery.layers.linear import TURNED
from surgery.layers.products import MATRICES


def transposed_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What transformers' `Conv1D` computes: x W + b, with W [m, n]."""
    rows = torch.addmm(bias, x.view(-1, x.size(-1)), weight)
    return rows.view(*x.shape[:-1], weight.shape[1])


class Transposed(nn.Module):
    """A layer of an exported program, where it has the weight of a `Conv1D`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


# What knows layers by their class knows this one by the name of the class that it stands for.
Transposed.__module__, _, Transposed.__qualname__ = CONV1D.rpartition(".")
Transposed.__name__ = Transposed.__qualname__


def _made(given: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    return Transposed(weight, bias)


class TransposedLinear(LayerKind):
    """y = Wᵀ x + b."""

    name = "transposed"
    classes = (CONV1D,)
    features = True
    transposed = True
    products = MATRICES
    written = staticmethod(transposed_linear)
    exported = {torch.ops.aten.addmm.default: Reads(1, 2, 0, _made)}  # noqa: RUF012

    @property
    def straight(self) -> frozenset[str]:
        return TURNED | {"matmul", "mm", "__matmul__", "addmm", "einsum"}

    def read(self, module: Any) -> Layer:
        into, out = module.weight.shape
        return Layer(self, out, into)

    def as_matrix(self, call: Call, layer: Layer, weight: Any) -> Any:
        return call(torch.t, weight)

    def as_weight(self, call: Call, layer: Layer, matrix: Any) -> Any:
        return call(torch.t, matrix)

    def title(self, layer: Layer) -> str:
        return "linear (transposed)"
