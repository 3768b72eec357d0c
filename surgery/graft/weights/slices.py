"""Functions on some of a tensor's features, in regular blocks (see rules/rows.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from surgery.rules.rows import Layout


def take_rows(value: Tensor, layout: Layout, dim: int) -> Tensor:
    """The features of ``layout`` along ``dim``: a view where they are one block."""
    start, width, _, count = layout
    if count == 1:
        return value.narrow(dim, start, width)
    first, second = _both(dim)
    return blocks(value, layout, dim).flatten(first, second)


def blocks(value: Tensor, layout: Layout, dim: int) -> Tensor:
    """A view of the features of ``layout``, with ``dim`` split into blocks and their members."""
    start, width, period, count = layout
    if count == 1:
        return _split(value.narrow(dim, start, width), dim, 1, width)
    return _split(value, dim, count, period).narrow(_both(dim)[1], start, width)


def put_rows(whole: Tensor, part: Tensor, layout: Layout, dim: int) -> Tensor:
    """A copy of ``whole`` with ``part`` as the features of ``layout`` along ``dim``."""
    start, width, period, count = layout
    part = part.to(whole.dtype)
    if count == 1:
        return torch.slice_scatter(whole, part, dim, start, start + width)
    first, second = _both(dim)
    split, members = _split(whole, dim, count, period), _split(part, dim, count, width)
    placed = torch.slice_scatter(split, members, second, start, start + width)
    return placed.flatten(first, second)


def put_elements(part: Tensor, layout: Layout, total: int, value: float) -> Tensor:
    """What is ``part`` at the places of ``layout`` along its first axis, and ``value`` elsewhere."""
    return put_rows(part.new_full((total, *part.shape[1:]), value), part, layout, 0)


def _split(value: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    split: Tensor = torch.unflatten(value, dim, (outer, inner))
    return split


def _both(dim: int) -> tuple[int, int]:
    """The axes of the blocks and of their members after ``dim`` was split."""
    return (dim - 1, dim) if dim < 0 else (dim, dim + 1)
