"""New keys for flex attention, whose mask is one of blocks with a function for what is in them.

New keys fill whole blocks of their own, the last of them with keys that nobody sees, so that the
blocks of other keys move and none is computed anew.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor


def in_blocks(mask: Any, new: int) -> tuple[Any, int]:
    """A `BlockMask` with blocks in front of which ``new`` keys are seen, and the keys in these."""
    size = mask.BLOCK_SIZE[1]
    blocks = -(-new // size)
    ahead = blocks * size
    count, indices = mask.kv_num_blocks + blocks, mask.kv_indices + blocks
    front = torch.arange(blocks, dtype=indices.dtype, device=indices.device)
    indices = torch.cat([front.expand(*indices.shape[:-1], -1), indices], dim=-1)
    full, full_indices = mask.full_kv_num_blocks, mask.full_kv_indices
    if full is not None:
        full_indices = functional.pad(full_indices + blocks, (0, blocks))
    shows = mask.mask_mod

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = shows(batch, head, query, (key - ahead).clamp(min=0))
        return (key < new) | ((key >= ahead) & own)

    queries, keys = mask.seq_lengths
    made = mask.from_kv_blocks(
        count,
        indices,
        full,
        full_indices,
        BLOCK_SIZE=mask.BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=(queries, keys + ahead),
    )
    return made, ahead


def apart(operand: Tensor, new: int, ahead: int) -> Tensor:
    """``operand`` with zeros behind its ``new`` rows, so that others follow ``ahead`` rows."""
    first, rest = operand[:, :, :new], operand[:, :, new:]
    return torch.cat([functional.pad(first, (0, 0, 0, ahead - new)), rest], dim=2)
