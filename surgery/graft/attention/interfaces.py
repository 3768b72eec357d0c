"""Changes of attentions that are computed out of sight, by flex or flash attention.

Their functions are called with other operands. New keys stand in front, and the rest as it was:

- Flex attention has a mask of blocks with a function for what is in them. New keys fill whole
  blocks of their own, the last of them with keys that nobody sees, so that the blocks of other
  keys move and none is computed anew.
- Flash attention has a mask [batch, keys] of what is no padding, and the last query sees the last
  key where it is causal. Windows and packed sequences are counted in keys: they are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.anatomy.interfaces import FLASH, FLEX, home
from surgery.graft.attention.change import Change
from surgery.graft.attention.fused import changed
from surgery.graft.attention.masks import reveal
from surgery.language.diagnostics import error

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "block_table", "cache")


def attend(
    change: Change,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    function: Callable[..., Any],
    module: Any,
    settings: dict[str, Any],
) -> Any:
    """The attention ``function`` with ``change``; other arguments are those of `attention_interface`.

    Raises:
        SurgeryError: S432 if the function has no place for keys that every query sees.

    """
    if change.query is not None:
        query = changed(query, change.query, 1)
    if change.key is not None:
        key = changed(key, change.key, 1)
    if change.value is not None:
        value = changed(value, change.value, 1)
    if change.revealed:
        if home(function) == FLEX:
            ahead = change.revealed
            if not (mask is None or isinstance(mask, Tensor)):
                mask, ahead = _in_blocks(mask, ahead)
                key, value = (_apart(t, change.revealed, ahead) for t in (key, value))
            else:
                mask = reveal(mask, False, ahead, query, key)
            bias = settings.get("position_bias")
            if bias is not None:
                settings = {**settings, "position_bias": functional.pad(bias, (ahead, 0))}
        else:
            _check(query, key, mask, module, settings)
            mask = mask if mask is None else functional.pad(mask, (change.revealed, 0), value=1)
    result, *others = function(module, query, key, value, mask, **settings)
    if change.output is not None:
        result = changed(result.transpose(1, 2), change.output, 1).transpose(1, 2)
    return (result, *others)


def _apart(operand: Tensor, new: int, ahead: int) -> Tensor:
    """``operand`` with zeros behind its ``new`` rows, so that others follow ``ahead`` rows."""
    first, rest = operand[:, :, :new], operand[:, :, new:]
    return torch.cat([functional.pad(first, (0, 0, 0, ahead - new)), rest], dim=2)


def _in_blocks(mask: Any, new: int) -> tuple[Any, int]:
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


def _check(query: Tensor, key: Tensor, mask: Any, module: Any, settings: dict[str, Any]) -> None:
    """Hold a call of flash attention against what it can do with new keys in ``key``."""
    window = settings.get("sliding_window")
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if window is not None and key.shape[-2] > window:
        reason = f"its window shows each query the last {window} keys"
    elif any(settings.get(name) is not None for name in _PACKED) or (
        mask is None and _restarts(query.shape[0], settings.get("position_ids"))
    ):
        reason = "several sequences are packed into one"
    elif causal and query.shape[-2] > 1 and _counts_from_the_first():
        reason = "on this device its causal mask counts keys from the first"
    else:
        return
    raise error(
        "S432",
        f"flash attention has no place for keys that every query sees: {reason}",
        help='load the model with attn_implementation="sdpa" or "flex_attention"',
    )


def _restarts(batch: int, positions: Tensor | None) -> bool:
    """Whether positions tell of several sequences in one, as transformers reads them."""
    if positions is None or batch != 1 or positions.shape[-1] == 1:
        return False
    return bool((positions.diff(dim=-1) != 1).any())


def _counts_from_the_first() -> bool:
    """Whether the first of more keys than queries is the one that the first query sees last."""
    return bool(getattr(sys.modules[FLASH], "_use_top_left_mask", False))
