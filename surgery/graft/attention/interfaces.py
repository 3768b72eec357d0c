"""Changes of attentions that are computed out of sight, as transformers' flex and flash attention.

Their functions are called with other operands. New keys stand in front, and the rest as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as functional
from torch import Tensor

from surgery.graft.attention.axes import changed
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.flex import apart, in_blocks
from surgery.graft.attention.masks import reveal
from surgery.huggingface.attention_functions import FLEX, home
from surgery.huggingface.flash_attention import check_room


def attend(
    change: CoreFunctions,
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
    if change.revealed and home(function) == FLEX:
        ahead = change.revealed
        if mask is None or isinstance(mask, Tensor):
            mask = reveal(mask, False, ahead, query, key)
        else:
            mask, ahead = in_blocks(mask, ahead)
            key, value = (apart(t, change.revealed, ahead) for t in (key, value))
        bias = settings.get("position_bias")
        if bias is not None:
            settings = {**settings, "position_bias": functional.pad(bias, (ahead, 0))}
    elif change.revealed:
        check_room(query, key, mask, module, settings)
        mask = mask if mask is None else functional.pad(mask, (change.revealed, 0), value=1)
    result, *others = function(module, query, key, value, mask, **settings)
    if change.output is not None:
        result = changed(result.transpose(1, 2), change.output, 1).transpose(1, 2)
    return (result, *others)
