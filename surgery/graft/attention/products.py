"""Cores made of a product with keys, a softmax, and a product with values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.roles.layouts import Order, scoring, weighing
from surgery.anatomy.roles.trails import MOVES, VIEWS
from surgery.anatomy.site import Core
from surgery.graft.attention.axes import beside, changed, joined, spread
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

    ``tensor`` is where it has come to; ``views`` are those that it is a view of, each with the
    number of steps up to there, which may be read again. Once its core is to be changed, ``new``
    are the weights of new keys.
    """

    def __init__(self, product: Product, tensor: Tensor):
        self.product = product
        self.tensor = tensor
        self.views: list[tuple[Tensor, int]] = []
        self.steps: list[Step] = []
        self.shifts: list[Tensor] = []
        self.core: Core | None = None
        self.change = Change()
        self.written = False
        self.new: Tensor | None = None

    def reached(self, given: list[Any]) -> Tensor | None:
        """The tensor on the trail that is among ``given``."""
        places = [self.tensor, *(tensor for tensor, _ in self.views)]
        return next((tensor for tensor in places if any(arg is tensor for arg in given)), None)

    def score(self, step: Step, before: Tensor, result: Tensor) -> None:
        """Go on by a step of scores from ``before``; a view leaves what it is of to be read."""
        places = [*self.views, (self.tensor, len(self.steps))]
        taken = next(count for tensor, count in places if tensor is before)
        self.steps = [*self.steps[:taken], step]
        viewed = step.kind in VIEWS or step.kind in MOVES
        self.views = [place for place in places if viewed and place[1] <= taken]
        self.tensor = result

    def soften(self, softmax: Step, before: Tensor, core: Core, change: Change) -> Tensor | None:
        """``softmax`` over scores of new and of own keys: the weights of own ones.

        In exp(x - logsumexp(x)) it is their sum. None if the product is not one of queries and keys.
        """
        pair = (self.product.one, self.product.other)
        ranks = (pair[0].dim(), pair[1].dim())
        scored = scoring(self.product.equation, ranks, core.heads_at)
        if scored is None:
            return None
        query, key = pair[1 - scored.keys_at], pair[scored.keys_at]
        if query.dim() > 4 and query.shape[scored.query[1]] != core.query_heads:
            return None
        heads = core.query_heads
        if change.query is not None:
            query = ordered(query, scored.query, change.query, heads)
        folded = heads if query.dim() == 3 else 1
        new, own = parts(key, scored.key, change.key, change, folded)

        def both(keys: Tensor) -> tuple[Tensor, Tensor]:
            return (query, keys) if scored.keys_at == 1 else (keys, query)

        self.core, self.change, self.views = core, change, []
        self.written = softmax.kind == "logsumexp"
        old = before
        if change.query is not None or own is not None:
            old = self.product.renewed(*both(key if own is None else own))
            for step in self.steps:
                old = step.again(old)
        if new is None:
            self.tensor = before if self.written else softmax.again(old)
            return softmax.again(old) if self.written else self.tensor
        fresh = self.product.again(*both(new))
        for step in self.steps:
            fresh = step.alike(fresh, self.shifts)
        fresh = fresh.expand(*old.shape[:-1], fresh.shape[-1])
        self.shifts = []
        weights = softmax.again(torch.cat([fresh, old], dim=-1))
        if self.written:
            self.new, self.tensor = (fresh - weights).exp(), before
            return weights
        self.new, self.tensor = weights[..., : change.revealed], weights[..., change.revealed :]
        return self.tensor

    def take(self, step: Step, result: Tensor) -> None:
        """Note that the weights went through ``step``; those of new keys do, too."""
        self.tensor = result
        if self.new is not None and not self.written:
            self.new = step.alike(self.new, [])

    def weigh(self, product: Product) -> Tensor | None:
        """``product`` of the weights with values, new ones too, or None if it is another."""
        change, core = self.change, self.core
        assert core is not None
        pair = (product.one, product.other)
        values_at = 1 if pair[0] is self.tensor else 0
        value = pair[values_at]
        ranks = (pair[0].dim(), pair[1].dim())
        weighed = weighing(product.equation, ranks, values_at, core.heads_at)
        if weighed is None:
            return None
        folded = core.query_heads if self.tensor.dim() == 3 else 1
        new, own = parts(value, weighed.value, change.value, change, folded)

        def both(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return (weights, values) if values_at == 1 else (values, weights)

        result = product.renewed(*both(self.tensor, value if own is None else own))
        if self.new is not None and new is not None:
            result = result + product.again(*both(self.new, new))
        if change.output is not None:
            result = ordered(result, weighed.result, change.output, core.query_heads)
        return result


def ordered(operand: Tensor, order: Order, function: Function, heads: int) -> Tensor:
    """``operand``, with axes in ``order``, changed by a function of four axes."""
    return changed(operand.permute(order), function, heads).permute(_inverse(order))


def parts(
    operand: Tensor, order: Order, function: Function | None, change: Change, heads: int
) -> tuple[Tensor | None, Tensor | None]:
    """New keys or values by themselves, and the own ones if they have changed, as in ``operand``."""
    if function is None:
        return None, None
    moved = operand.permute(order)
    given = spread(moved, heads)
    changes_own = change.own or change.revealed == 0
    made = function(given if changes_own else given[:, :, :0]).to(operand.dtype)
    back = _inverse(order)
    new, own = made[:, :, : change.revealed], made[:, :, change.revealed :]
    return (
        beside(new, operand.dim()).permute(back) if change.revealed else None,
        joined(own, moved.shape).permute(back) if changes_own else None,
    )


def _inverse(order: Order) -> Order:
    return tuple(order.index(axis) for axis in range(len(order)))
