"""Decompositions of matrices, in single precision or wider and with signs that are always the same.

What stands for the start of a parameter must not depend on which of several equal answers a library
gives: of each singular vector on the left the largest element is positive, of R the diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(matrix: Tensor) -> Tensor:
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def svd(matrix: Tensor, r: int, smallest: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """U [n, r], s [r] and V [r, m] with the ``r`` largest singular values, or the smallest.

    The largest of them comes first either way; U diag(s) V is the part of the matrix.
    """
    left, values, right = torch.linalg.svd(_wide(matrix), full_matrices=False)
    chosen = slice(values.shape[0] - int(r), None) if smallest else slice(int(r))
    left, values, right = left[:, chosen], values[chosen], right[chosen]
    highest = left.gather(0, left.abs().argmax(0, keepdim=True)).squeeze(0)
    signs = torch.where(highest.real < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, values, right * signs.unsqueeze(1)


def minor_svd(matrix: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svd`, of the ``r`` smallest singular values."""
    return svd(matrix, r, smallest=True)


def qr(matrix: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The first ``r`` columns of Q [n, r] and rows of R [r, m]."""
    left, right = torch.linalg.qr(_wide(matrix))
    left, right = left[:, : int(r)], right[: int(r)]
    signs = torch.where(right.diagonal().real < 0, -1.0, 1.0).to(right.dtype)
    return left * signs, right * signs.unsqueeze(1)
