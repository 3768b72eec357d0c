"""Expressions computed on tensors at once: for first values, merges and steps of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.host import Host
from surgery.layers import Layer
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression


def run(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function to tensors; a ``str`` target is a method of the first."""
    if isinstance(target, str):
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


class Tensors(Host):
    """Runs expressions on tensors at once: for initial values and merges."""

    def __init__(self, values: Callable[[Expression], Tensor]):
        self.values = values

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return run(target, *args, **kwargs)

    def leaf(self, expression: Expression) -> Tensor:
        return self.values(expression)

    def training(self) -> bool:
        return False


def compute(
    expression: Expression,
    layer: Layer | None,
    sizes: Mapping[str, Scalar],
    values: Callable[[Expression], Tensor],
) -> Any:
    """The value of an expression that does not depend on the input (a tensor, or a number)."""
    return Emitter(Tensors(values), layer, sizes).emit(expression)


def by_expert(weight: Tensor, layer: Layer) -> Tensor:
    """A view of the weights of all experts with an axis for the experts in front."""
    return weight.view(layer.experts, -1, weight.shape[-1])
