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


def make_room(cache: Any, n: int, window: int | None) -> None:
    """Let the layers of an empty cache of a fixed size hold ``n`` places more.

    Those that slide keep the last ``window`` places, however many there are.

    Raises:
        SurgeryError: S530 if a layer slides and no window is known.

    """
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    for layer in layers:
        size, room = getattr(layer, "max_cache_len", None), getattr(layer, _ROOM, 0)
        if size is None or room >= n:
            continue
        wanted = size + n - room
        if getattr(layer, "is_sliding", False):
            if window is None:
                raise error(
                    "S530",
                    "a static cache that slides may be too short for a prompt",
                    help="use a dynamic cache",
                )
            wanted = max(size, min(wanted, window))
        layer.max_cache_len = wanted
        setattr(layer, _ROOM, n)
        layer.is_initialized = False
