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
    if isinstance(cache, tuple | list) and not cache:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise error("S530", f"a cache that is a {type(cache).__name__} does not tell its length")
    return int(cache.get_seq_length())


def make_room(cache: Any, n: int) -> None:
    """Let the layers of an empty cache of a fixed size hold ``n`` places more.

    Raises:
        SurgeryError: S530 if a layer keeps only a window, and its size may be the whole cache's.

    """
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    fixed = [layer for layer in layers if getattr(layer, "max_cache_len", None) is not None]
    longest = max((layer.max_cache_len - _room(layer) for layer in fixed), default=0)
    for layer in fixed:
        if getattr(layer, "is_sliding", False):
            if layer.max_cache_len == longest:
                raise error(
                    "S530",
                    f"a static cache of {longest} places that slides cannot be told from one that"
                    f" is too short for a prompt of {n}",
                    help="use a dynamic cache",
                )
        elif _room(layer) < n:
            layer.max_cache_len += n - _room(layer)
            setattr(layer, _ROOM, n)
            layer.is_initialized = False


def _room(layer: Any) -> int:
    """What an earlier sequence was given here."""
    return getattr(layer, _ROOM, 0)
