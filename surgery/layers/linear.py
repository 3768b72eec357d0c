"""`nn.Linear`, and whatever else multiplies hidden states with a weight [out, in]."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.layers.kind import Layer, LayerKind
from surgery.layers.products import MATRICES

TURNED = frozenset(("t", "T", "mT"))
"""What may be done to a matrix before it is multiplied with."""


class Linear(LayerKind):
    """y = W x + b."""

    name = "linear"
    classes = (nn.Linear,)
    features = True
    products = MATRICES
    written = staticmethod(functional.linear)

    @property
    def straight(self) -> frozenset[str]:
        return TURNED | {"linear", "einsum"}

    def read(self, module: Any) -> Layer:
        sizes = (module.out_features, module.in_features)
        weight = getattr(module, "weight", None)
        # A quantised weight has bits of several numbers in each element, or another shape.
        whole = isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == sizes
        return Layer(self, *sizes, native=whole)
