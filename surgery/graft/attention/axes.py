"""From the axes an operand has to batch, heads, length and features, and back."""

from __future__ import annotations

from torch import Tensor


def spread(operand: Tensor, heads: int) -> Tensor:
    """``operand`` with four axes: of three the first holds the batch and its ``heads``."""
    if operand.dim() == 2:
        return operand[None, None]
    if operand.dim() == 3:
        return operand.reshape(-1, heads, *operand.shape[1:])
    return operand


def joined(operand: Tensor, rank: int) -> Tensor:
    """The inverse of :func:`spread`, to ``rank`` axes."""
    if rank == 2:
        return operand[0, 0]
    return operand.flatten(0, 1) if rank == 3 else operand
