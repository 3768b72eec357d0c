"""From the axes an operand has to batch, heads, length and features, and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from surgery.graft.attention.change import Function


def spread(operand: Tensor, heads: int) -> Tensor:
    """``operand`` with four axes: of three the first holds the batch and its ``heads``.

    Of more than four those between heads and length are blocks, put one after the other.
    """
    if operand.dim() == 2:
        return operand[None, None]
    if operand.dim() == 3:
        return operand.reshape(-1, heads, *operand.shape[1:])
    return operand.flatten(2, -2) if operand.dim() > 4 else operand


def joined(operand: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`spread`, to the axes of ``shape``."""
    rank = len(shape)
    if rank == 2:
        return operand[0, 0]
    if rank > 4:
        return operand.reshape(*operand.shape[:2], *shape[2:-1], operand.shape[-1])
    return operand.flatten(0, 1) if rank == 3 else operand


def beside(new: Tensor, rank: int) -> Tensor:
    """``new`` keys or values of four axes with the ``rank`` of the own ones, the same for all blocks."""
    if rank > 4:
        return new.reshape(*new.shape[:2], *(1,) * (rank - 4), *new.shape[2:])
    return joined(new, (0,) * rank)


def as_given(made: Tensor, operand: Tensor) -> Tensor:
    """What was ``made`` of ``operand`` with four axes, in its dtype and with its own axes.

    It may have become longer if it has four axes or fewer.
    """
    return joined(made.to(operand.dtype), operand.shape)


def changed(operand: Tensor, function: Function, heads: int) -> Tensor:
    """``operand`` changed by a function of four axes."""
    return as_given(function(spread(operand, heads)), operand)
