"""`nn.Linear`, and whatever else multiplies hidden states with a weight [out, in]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.layers.kind import Layer, LayerKind, Reads, holding
from surgery.layers.products import MATRICES

TURNED = frozenset(("t", "T", "mT"))
"""What may be done to a matrix before it is multiplied with."""


def _made(given: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    made = nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta")
    return holding(made, weight, bias)


class Linear(LayerKind):
    """y = W x + b."""

    name = "linear"
    classes = (nn.Linear,)
    features = True
    products = MATRICES
    written = staticmethod(functional.linear)
    exported = {torch.ops.aten.linear.default: Reads(0, 1, 2, _made)}  # noqa: RUF012

    @property
    def straight(self) -> frozenset[str]:
        return TURNED | {"linear", "einsum"}

    def read(self, module: Any) -> Layer:
        sizes = (module.out_features, module.in_features)
        weight = getattr(module, "weight", None)
        # A quantised weight has bits of several numbers in each element, or another shape.
        whole = isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == sizes
        return Layer(self, *sizes, native=whole)
