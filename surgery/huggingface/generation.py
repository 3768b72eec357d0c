"""Masks made before a model is called, which would not know of a prompt.

For caches of a fixed size transformers' `generate` makes the mask [batch, 1, queries, keys] itself,
through `create_masks_for_generate` of the model, and hands it in. Models make the same mask from
the plain one, so they are given that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_MAKER = "create_masks_for_generate"


def plain_mask(*_: Any, attention_mask: Any = None, **__: Any) -> Any:
    """The mask [batch, length] as it was given, or None."""
    return attention_mask


def keep_plain(model: nn.Module) -> None:
    """Have `generate` hand masks on as they are given."""
    for module in model.modules():
        if hasattr(module, "prepare_inputs_for_generation") and _MAKER not in module.__dict__:
            module.__dict__[_MAKER] = plain_mask


def undo(modules: Iterable[nn.Module]) -> bool:
    """Undo :func:`keep_plain` of a model of these ``modules``; whether there was anything to undo."""
    found = [m for m in modules if m.__dict__.get(_MAKER) is plain_mask]
    for module in found:
        del module.__dict__[_MAKER]
    return bool(found)
