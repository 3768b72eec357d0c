"""What transformers' flash attention can do with keys that every query sees.

It has a mask [batch, keys] of what is no padding, and where it is causal the last query sees the
last key. Windows and packed sequences are counted in keys: with others in front they would move.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from surgery.huggingface.attention_functions import FLASH
from surgery.language.diagnostics import error

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "block_table", "cache")


def check_room(
    query: Tensor, key: Tensor, mask: Any, module: Any, settings: dict[str, Any]
) -> None:
    """Hold a call of flash attention against what it can do with new keys in ``key``.

    Raises:
        SurgeryError: S432 if the call has no place for keys that every query sees.

    """
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
    # Set where the kernel is that of Ascend NPUs, or of an old version.
    return bool(getattr(sys.modules[FLASH], "_use_top_left_mask", False))
