"""Caches of keys and values: how much they hold, and room in those of a fixed size."""

from __future__ import annotations

from typing import Any

from surgery.language.diagnostics import error

_ROOM = "surgery_room"


def past_of(cache: Any) -> int | None:
    """How many places of ``cache`` are taken; None without a cache.

    Raises:
        SurgeryError: S530 if the cache cannot tell.

    """
    if cache is None:
        return None
    length = getattr(cache, "get_seq_length", None)
    if length is not None:
        return int(length())
    if cache == ():
        return 0
    raise error("S530", f"a cache that is a {type(cache).__name__} does not tell its length")


def make_room(cache: Any, n: int) -> None:
    """Let the layers of an empty cache of a fixed size hold ``n`` places more.

    Layers that slide get them, too: what they must not see any more the mask hides.
    """
    for layer in getattr(getattr(cache, "self_attention_cache", cache), "layers", ()):
        size, room = getattr(layer, "max_cache_len", None), getattr(layer, _ROOM, 0)
        if size is not None and room < n:
            layer.max_cache_len = size + n - room
            setattr(layer, _ROOM, n)
            # It gets its tensors anew, in the new size.
            layer.is_initialized = False
