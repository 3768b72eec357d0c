"""Cores made of a product with keys, a softmax, and a product with values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.roles.layouts import Order, scoring, weighing
from surgery.anatomy.roles.softmaxes import FORMS
from surgery.anatomy.roles.trail import FunctionCall, Trail
from surgery.graft.attention.axes import beside, changed, joined, spread
from surgery.graft.attention.change import CoreFunctions, Function
from surgery.graft.attention.steps import Step


@dataclass(frozen=True)
class MatrixProduct:
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


def product(call: FunctionCall[Tensor]) -> MatrixProduct | None:
    """The product that a function computes, if it is of two tensors."""
    given, kwargs = list(call.given), call.kwargs
    if call.kind == "baddbmm":
        beside, *given = given
        scale, share = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        return MatrixProduct(given[0], given[1], None, scale, beside, share)
    if len(given) != 2:
        return None
    if call.kind == "einsum":
        equation = call.args[0]
        return MatrixProduct(given[0], given[1], equation) if isinstance(equation, str) else None
    if call.function.__name__ == "__rmatmul__":
        given = given[::-1]
    return MatrixProduct(given[0], given[1])


class ChangedCore:
    """The core on a ``trail``, with its change.

    ``new`` are the weights of new keys behind the softmax; of one that is written out, their scores.
    """

    def __init__(self, trail: Trail[Tensor], core: AttentionCore, change: CoreFunctions):
        self.trail = trail
        self.core = core
        self.change = change
        self.new: Tensor | None = None

    def soften(self, softmax: Step, before: Tensor) -> Tensor | None:
        """``softmax`` over scores of new and of own keys: the weights of own ones.

        Where it is written out, their total. None if the product is not one of queries and keys.
        """
        core, change = self.core, self.change
        product: MatrixProduct = self.trail.product
        steps: list[Step] = self.trail.steps(before)
        pair = (product.one, product.other)
        ranks = (pair[0].dim(), pair[1].dim())
        scored = scoring(product.equation, ranks, core.heads_at)
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

        old = before
        if change.query is not None or own is not None:
            old = product.renewed(*both(key if own is None else own))
            for step in steps:
                old = step.again(old)
        if new is None:
            return softmax.again(old)
        fresh = product.again(*both(new))
        for step in steps:
            fresh = step.alike(fresh, self.trail.aside)
        fresh = fresh.expand(*old.shape[:-1], fresh.shape[-1])
        made = softmax.again(torch.cat([fresh, old], dim=-1))
        if FORMS[softmax.kind].shares:
            self.new = fresh
            return made
        self.new, own = made[..., : change.revealed], made[..., change.revealed :]
        return own

    def weigh(self, product: MatrixProduct, weights: Tensor) -> Tensor | None:
        """``product`` of the weights with values, new ones too, or None if it is another."""
        change, core = self.change, self.core
        pair = (product.one, product.other)
        values_at = 1 if pair[0] is weights else 0
        value = pair[values_at]
        ranks = (pair[0].dim(), pair[1].dim())
        weighed = weighing(product.equation, ranks, values_at, core.heads_at)
        if weighed is None:
            return None
        folded = core.query_heads if weights.dim() == 3 else 1
        new, own = parts(value, weighed.value, change.value, change, folded)

        def both(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return (weights, values) if values_at == 1 else (values, weights)

        result = product.renewed(*both(weights, value if own is None else own))
        if self.new is not None and new is not None:
            fresh = self.new
            for step in self.trail.steps(weights):
                fresh = step.alike(fresh, self.trail.aside)
            result = result + product.again(*both(fresh, new))
        if change.output is not None:
            result = ordered(result, weighed.result, change.output, core.query_heads)
        return result


def ordered(operand: Tensor, order: Order, function: Function, heads: int) -> Tensor:
    """``operand``, with axes in ``order``, changed by a function of four axes."""
    return changed(operand.permute(order), function, heads).permute(_inverse(order))


def parts(
    operand: Tensor, order: Order, function: Function | None, change: CoreFunctions, heads: int
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
