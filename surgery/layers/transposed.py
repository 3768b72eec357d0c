"""A linear layer whose weight is [in, out]: transformers' `Conv1D` (GPT-2 and its kin)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.huggingface.layers import CONV1D
from surgery.layers.kind import Call, Layer, LayerKind
from surgery.layers.linear import TURNED
from surgery.layers.products import MATRICES


def transposed_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What transformers' `Conv1D` computes: x W + b, with W [m, n]."""
    rows = torch.addmm(bias, x.view(-1, x.size(-1)), weight)
    return rows.view(*x.shape[:-1], weight.shape[1])


class TransposedLinear(LayerKind):
    """y = Wᵀ x + b."""

    name = "transposed"
    classes = (CONV1D,)
    features = True
    transposed = True
    products = MATRICES
    written = staticmethod(transposed_linear)

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
