"""Products with an adapted weight, whichever way torch is asked for them.

A forward that multiplies with a weight itself reads an object in its place, which is given to
functions of torch as a weight is. The functions here are what these become. Each gives None where
it is no product with the weight as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.layers.einsum import letters
from surgery.layers.kind import LayerKind


@dataclass(frozen=True, slots=True)
class Product:
    """A product as it runs: ``again`` on another input, and ``like`` it with another weight."""

    again: Callable[[Tensor], Tensor]
    like: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done to the products of a weight.

    ``run`` gives a changed product from its input, from what it is and from itself, features in
    front of ``spatial`` axes; ``whole`` the changed weight, if there is one. A product without
    the ``offset`` that the layer has gets it while it is changed.
    """

    run: Callable[[Tensor, Tensor, Product], Tensor]
    kind: LayerKind
    total: int
    spatial: int = 0
    offset: Tensor | None = None
    whole: Callable[[], Tensor] | None = None


class WeightInProducts:
    """A weight whose products are changed.

    ``weight`` is the parameter, or the rows of it from ``start`` on. Where its inputs come
    ``first``, it is multiplied with from the right.
    """

    def __init__(self, change: Change, weight: Tensor, first: bool, start: int = 0):
        self.change = change
        self.weight = weight
        self.first = first
        self.start = start

    def changed(self, x: Tensor, y: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """``y`` = x ``matrix``ᵀ + ``bias`` as methods have it, of the whole layer or of its rows alone.

        It stays contiguous, as products are: their views are taken.
        """
        change, end = self.change, self.start + y.shape[-1]
        apart = change.offset if bias is None else None

        def whole(y: Tensor) -> Tensor:
            y = y if apart is None else y + apart
            if y.shape[-1] == change.total:
                return y
            empty = y.new_zeros(*y.shape[:-1], change.total)
            return torch.slice_scatter(empty, y, -1, self.start, end)

        def again(x: Tensor) -> Tensor:
            return whole(functional.linear(x, matrix, bias))

        result = change.run(x, whole(y), Product(again))
        if y.shape[-1] != change.total:
            result = result[..., self.start : end]
        result = result.to(y.dtype).contiguous()
        return result if apart is None else result - apart


def _linear(func: Any, input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor | None:
    if not isinstance(weight, WeightInProducts) or weight.first:
        return None
    return weight.changed(input, func(input, weight.weight, bias), weight.weight, bias)


def _matmul(func: Any, x: Tensor, weight: Any) -> Tensor | None:
    if not isinstance(weight, WeightInProducts) or not weight.first:
        return None
    return weight.changed(x, func(x, weight.weight), weight.weight.t())


def _addmm(func: Any, bias: Tensor, x: Tensor, weight: Any) -> Tensor | None:
    if not isinstance(weight, WeightInProducts) or not weight.first:
        return None
    return weight.changed(x, func(bias, x, weight.weight), weight.weight.t(), bias)


def _einsum(func: Any, equation: str, *operands: Any) -> Tensor | None:
    """The changed product of an einsum of two operands, with features last while it is changed."""
    at = next(i for i, operand in enumerate(operands) if isinstance(operand, WeightInProducts))
    weight: WeightInProducts = operands[at]
    x: Tensor = operands[1 - at]
    pair = (weight.weight, x) if at == 0 else (x, weight.weight)
    terms = letters(equation, (pair[0].dim(), pair[1].dim()))
    if terms is None:
        return None
    own, given, result = terms[at], terms[1 - at], terms[2]
    y: Tensor = torch.einsum(equation, *pair)
    if (own[0] in given) != weight.first:
        return None
    leading = [c for c in given if c not in own]
    into = [given.index(c) for c in (*leading, *(c for c in own if c in given))]
    order = [result.index(c) for c in (*leading, *(c for c in own if c not in given))]
    states, made = x.permute(into), y.permute(order)
    first = len(leading)
    states, flat = states.flatten(first), made.flatten(first)
    sizes = (states.shape[-1], flat.shape[-1])
    matrix = (
        weight.weight.reshape(sizes).t() if weight.first else weight.weight.reshape(sizes[::-1])
    )
    changed = weight.changed(states, flat, matrix).reshape(made.shape)
    changed = changed.permute([order.index(i) for i in range(len(order))])
    return changed.contiguous() if y.is_contiguous() else changed


MATRICES = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "__matmul__": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
}
"""Products with matrices, which may be held either way round and turned before."""


def operator_of(
    func: Any, input: Tensor, weight: Any, bias: Any = None, *rest: Any, **more: Any
) -> Tensor | None:
    """A convolution, or another function of an input, a weight [n, …] and a bias, and of more."""
    if not isinstance(weight, WeightInProducts):
        return None
    offset = weight.change.offset if bias is None else None
    apart = None if offset is None else offset.view(-1, *[1] * weight.change.spatial)

    def like(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        return func(x, kernel, bias, *rest, **more)

    def again(x: Tensor) -> Tensor:
        y = like(x, weight.weight, bias)
        return y if apart is None else y + apart

    y = again(input)
    result = weight.change.run(input, y, Product(again, like)).to(y.dtype)
    return result if apart is None else result - apart
