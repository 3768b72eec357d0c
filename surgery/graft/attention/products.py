"""Cores made of a product with keys, a softmax, and a product with values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.roles.layouts import Order, scoring, weighing
from surgery.graft.attention.axes import joined, spread
from surgery.graft.attention.change import Change, Function
from surgery.graft.attention.steps import Step, tensors


@dataclass(frozen=True)
class Product:
    """A product of two tensors; ``equation`` is that of an einsum.

    It is multiplied by ``scale``, and added to ``beside`` times ``share`` unless it is of new keys.
    """

    one: Tensor
    other: Tensor
    equation: str | None = None
    scale: float = 1
    beside: Tensor | None = None
    share: float = 1

    def again(self, one: Tensor, other: Tensor) -> Tensor:
        """The product of other operands."""
        if self.equation is not None:
            return torch.einsum(self.equation, one, other)
        result = torch.matmul(one, other)
        return result if self.scale == 1 else result * self.scale

    def renewed(self, one: Tensor, other: Tensor) -> Tensor:
        """The product of other operands in place of its own."""
        result = self.again(one, other)
        return result if self.beside is None else result + self.beside * self.share


def product(kind: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """The product that a function computes, if it is of two tensors."""
    given = tensors(args, kwargs)
    if kind == "baddbmm":
        beside, *given = given
        scale, share = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        return Product(given[0], given[1], None, scale, beside, share)
    if len(given) != 2:
        return None
    if kind == "einsum":
        return Product(given[0], given[1], args[0]) if isinstance(args[0], str) else None
    if func.__name__ == "__rmatmul__":
        given = given[::-1]
    return Product(given[0], given[1])


class Trail:
    """One product, followed through the softmax of its scores to the product with values.

    ``tensor`` is where it has come to. Once its core is to be changed, ``new`` are the weights of
    new keys.
    """

    def __init__(self, product: Product, tensor: Tensor):
        self.product = product
        self.tensor = tensor
        self.steps: list[Step] = []
        self.shifts: list[Tensor] = []
        self.change: Change | None = None
        self.heads = 1
        self.new: Tensor | None = None

    def soften(self, softmax: Step, change: Change, heads: int) -> Tensor | None:
        """``softmax`` over scores of new and of own keys: the weights of own ones.

        None if the product is not one of queries and keys.
        """
        pair = (self.product.one, self.product.other)
        scored = scoring(self.product.equation, (pair[0].dim(), pair[1].dim()))
        if scored is None:
            return None
        query, key = pair[1 - scored.keys_at], pair[scored.keys_at]
        if change.query is not None:
            query = ordered(query, scored.query, change.query, heads)
        folded = heads if query.dim() == 3 else 1
        new, own = parts(key, scored.key, change.key, change, folded)

        def both(keys: Tensor) -> tuple[Tensor, Tensor]:
            return (query, keys) if scored.keys_at == 1 else (keys, query)

        self.change, self.heads = change, heads
        old = self.tensor
        if change.query is not None or own is not None:
            old = self.product.renewed(*both(key if own is None else own))
            for step in self.steps:
                old = step.again(old)
        if new is None:
            self.tensor = softmax.again(old)
            return self.tensor
        fresh = self.product.again(*both(new))
        for step in self.steps:
            fresh = step.alike(fresh, self.shifts)
        fresh = fresh.expand(*old.shape[:-1], fresh.shape[-1])
        weights = softmax.again(torch.cat([fresh, old], dim=-1))
        self.new, self.tensor = weights[..., : change.revealed], weights[..., change.revealed :]
        return self.tensor

    def take(self, step: Step, result: Tensor) -> None:
        """Note that the weights went through ``step``; those of new keys do, too."""
        self.tensor = result
        if self.new is not None:
            self.new = step.alike(self.new, [])

    def weigh(self, product: Product) -> Tensor | None:
        """``product`` of the weights with values, new ones too, or None if it is another."""
        change, heads = self.change, self.heads
        assert change is not None
        pair = (product.one, product.other)
        values_at = 1 if pair[0] is self.tensor else 0
        value = pair[values_at]
        weighed = weighing(product.equation, value.dim(), values_at)
        if weighed is None:
            return None
        folded = heads if self.tensor.dim() == 3 else 1
        new, own = parts(value, weighed.value, change.value, change, folded)

        def both(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return (weights, values) if values_at == 1 else (values, weights)

        result = product.renewed(*both(self.tensor, value if own is None else own))
        if self.new is not None and new is not None:
            result = result + product.again(*both(self.new, new))
        if change.output is not None:
            result = ordered(result, weighed.result, change.output, heads)
        return result


def ordered(operand: Tensor, order: Order, function: Function, heads: int) -> Tensor:
    """``operand``, with axes in ``order``, changed by a function of four axes."""
    moved = operand.permute(order)
    result = joined(function(spread(moved, heads)).to(operand.dtype), operand.dim())
    return result.permute(_inverse(order))


def parts(
    operand: Tensor, order: Order, function: Function | None, change: Change, heads: int
) -> tuple[Tensor | None, Tensor | None]:
    """New keys or values by themselves, and the own ones if they have changed, as in ``operand``."""
    if function is None:
        return None, None
    given = spread(operand.permute(order), heads)
    changes_own = change.own or change.revealed == 0
    made = function(given if changes_own else given[:, :, :0]).to(operand.dtype)
    back = _inverse(order)
    new = joined(made[:, :, : change.revealed], operand.dim()).permute(back)
    own = joined(made[:, :, change.revealed :], operand.dim()).permute(back)
    return new if change.revealed else None, own if changes_own else None


def _inverse(order: Order) -> Order:
    return tuple(order.index(axis) for axis in range(len(order)))
