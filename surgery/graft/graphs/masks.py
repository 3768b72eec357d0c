"""Masks of ones and zeros, in the dtype of what is compared: no gradient passes them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Compared = Tensor | float


def _mask(compare: Callable[[Any, Any], Any], left: Compared, right: Compared) -> Tensor:
    dtypes = [t.dtype for t in (left, right) if isinstance(t, Tensor)]
    dtype = torch.promote_types(dtypes[0], dtypes[-1])
    held: Tensor = compare(left, right)
    return held.to(dtype)


def less(left: Compared, right: Compared) -> Tensor:
    return _mask(operator.lt, left, right)


def less_equal(left: Compared, right: Compared) -> Tensor:
    return _mask(operator.le, left, right)


def greater(left: Compared, right: Compared) -> Tensor:
    return _mask(operator.gt, left, right)


def greater_equal(left: Compared, right: Compared) -> Tensor:
    return _mask(operator.ge, left, right)


def equal(left: Compared, right: Compared) -> Tensor:
    return _mask(operator.eq, left, right)


def not_equal(left: Compared, right: Compared) -> Tensor:
    return _mask(operator.ne, left, right)


def topk(x: Tensor, k: int, dim: int) -> Tensor:
    """1 at the ``k`` largest along ``dim``; of equal ones as many as are wanted."""
    chosen = x.detach().topk(min(int(k), x.shape[dim]), dim).indices
    return torch.zeros_like(x).scatter(dim, chosen, 1)


def one_hot(x: Tensor, dim: int) -> Tensor:
    """1 at the largest along ``dim``; at the first of equal ones."""
    return torch.zeros_like(x).scatter(dim, x.detach().argmax(dim, keepdim=True), 1)
