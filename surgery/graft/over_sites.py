"""Functions of the values that a method has at all of its sites, for each of these sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgery.language.diagnostics import error


def topk(values: Sequence[Tensor], count: float) -> list[Tensor]:
    """1 at the ``count`` largest of all elements of all sites, else 0."""
    every = torch.cat([v.reshape(-1) for v in values])
    mask = torch.zeros_like(every)
    mask[every.topk(min(int(count), every.numel())).indices] = 1
    untyped: Any = mask
    parts: tuple[Tensor, ...] = untyped.split([v.numel() for v in values])
    return [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]


def total(values: Sequence[Tensor]) -> list[Tensor]:
    """The sum over sites, of each element."""
    return [_stacked(values).sum(0)] * len(values)


def mean(values: Sequence[Tensor]) -> list[Tensor]:
    """The mean over sites, of each element."""
    return [_stacked(values).mean(0)] * len(values)


def largest(values: Sequence[Tensor]) -> list[Tensor]:
    """The largest over sites, of each element."""
    return [_stacked(values).amax(0)] * len(values)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    shapes = sorted({str([*v.shape]) for v in values})
    if len(shapes) > 1:
        raise error(
            "S572",
            f"what is taken over sites is of one shape, and this is {' and '.join(shapes)}",
            help="take it of one number for each site",
        )
    return torch.stack([*values])
