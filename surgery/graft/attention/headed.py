"""What nodes compute around an attention that is written out: operands by heads, new keys beside own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.roles.layouts import Order, scoring, weighing
from surgery.graft.attention.axes import beside, joined, spread


def by_heads(operand: Tensor, other: Tensor, role: str, heads: tuple[int, int]) -> Tensor:
    """An operand of a product, or its result, as [batch, heads, length, features]."""
    return spread(operand.permute(_order(operand, other, role, heads[1])), heads[0])


def none_of(operand: Tensor) -> Tensor:
    """No keys, of the form of those in ``operand``."""
    return operand[:, :, :0]


def in_place(
    made: Tensor, operand: Tensor, other: Tensor, role: str, heads: tuple[int, int], count: int
) -> Tensor:
    """What was made of ``operand`` with four axes, with its own; of ``count`` new ones, the first."""
    order = _order(operand, other, role, heads[1])
    back = tuple(order.index(axis) for axis in range(len(order)))
    made = made.to(operand.dtype)
    if count:
        return beside(made[:, :, :count], operand.dim()).permute(back)
    return joined(made, [operand.shape[axis] for axis in order]).permute(back)


def _order(operand: Tensor, other: Tensor, role: str, heads_at: int) -> Order:
    if role in ("query", "key"):
        ranks = (operand.dim(), other.dim()) if role == "query" else (other.dim(), operand.dim())
        scored = scoring(None, ranks, heads_at)
        assert scored is not None
        return scored.query if role == "query" else scored.key
    weighed = weighing(None, (other.dim(), operand.dim()), 1, heads_at)
    assert weighed is not None
    return weighed.value if role == "value" else weighed.result


def viewed_as(new: Tensor, like: Tensor) -> Tensor:
    """``new`` scores with the axes that those of the model's own keys have after a view."""
    return new.reshape(*like.shape[:-1], new.shape[-1])


def repeated_as(new: Tensor, like: Tensor) -> Tensor:
    """``new`` scores, to which nothing is joined: a mask and a bias are of the model's own keys."""
    return new.expand(*like.shape[:-1], new.shape[-1])


def scaled(new: Tensor, factor: Any, like: Tensor, divides: bool) -> Tensor:
    """``new`` scores scaled as the own ones are, unless each key has a factor of its own."""
    if isinstance(factor, Tensor) and factor.dim() and factor.shape[-1] != 1:
        return repeated_as(new, like)
    return new / factor if divides else new * factor


def with_new(new: Tensor, own: Tensor) -> Tensor:
    """The scores of ``new`` and of the model's ``own`` keys."""
    return torch.cat([new.expand(*own.shape[:-1], new.shape[-1]).to(own.dtype), own], -1)


def first_of(weights: Tensor, count: int) -> Tensor:
    return weights[..., :count]


def rest_of(weights: Tensor, count: int) -> Tensor:
    return weights[..., count:]


def behind(operand: Tensor, count: int) -> Tensor:
    return operand[:, :, count:]
