"""Masks for keys that every query sees."""

from __future__ import annotations

import torch
from torch import Tensor


def reveal(mask: Tensor | None, causal: bool, revealed: int, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask for ``k``, of which the first ``revealed`` keys are new, with the rest as it was.

    ``mask`` was that of the other keys: None, of booleans (True where a query sees a key), or of
    numbers to add; [..., queries, keys] or what broadcasts to it. ``causal`` stands for a mask with
    query i seeing the first i + 1 keys, whichever their number.
    """
    if causal:
        shape = (q.shape[-2], k.shape[-2])
        return torch.ones(shape, dtype=torch.bool, device=q.device).tril(diagonal=revealed)
    if mask is None or revealed == 0:
        return mask
    own = k.shape[-2] - revealed
    if mask.dim() < 2:
        mask = mask.expand(1, own)
    elif mask.shape[-1] != own:
        mask = mask.expand(*mask.shape[:-1], own)
    shape = (*mask.shape[:-1], revealed)
    seen = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
    return torch.cat([seen, mask], dim=-1)
