"""Caches of keys and values: how much they hold, and room in those of a fixed size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from surgery.language.diagnostics import error

_ROOM = "surgery_room"
UNTOLD = -1
"""How much a cache holds that is filled with states of a recurrence, and not with keys."""


def past_of(cache: Any) -> int | None:
    """How many places of ``cache`` are taken, or `UNTOLD`; None without a cache.

    Raises:
        SurgeryError: S530 if the cache does not tell whether it is filled.

    """
    if cache is None:
        return None
    # RWKV: a list of states, empty at first.
    if type(cache) in (tuple, list) and all(map(_recurs, cache)):
        return UNTOLD if cache else 0
    # xLSTM counts the tokens itself.
    if hasattr(cache, "seqlen_offset"):
        return int(cache.seqlen_offset)
    length = _length(cache)
    if length is None:
        name = type(cache).__name__
        raise error("S530", f"a cache that is a {name} does not tell its length")
    return length


def _recurs(state: Any) -> bool:
    return isinstance(state, Tensor) and state.is_floating_point()


def _length(cache: Any) -> int | None:
    told = getattr(cache, "get_seq_length", None)
    if told is None:
        return None
    # Caches of Mamba and other recurrences have no layer of keys and no length, but know of a state.
    layers = getattr(cache, "layers", ())
    if layers and not any(hasattr(layer, "get_seq_length") for layer in layers):
        return UNTOLD if cache.has_previous_state() else 0
    found = told()
    return None if found is None else int(found)


def make_room(cache: Any, n: int) -> None:
    """Let the layers of an empty cache of a fixed size hold ``n`` places more.

    Layers that slide get them, too: what they must not see any more the mask hides.
    """
    # T5, BART and others with a decoder have one cache for it and one for the encoder's states.
    for layer in getattr(getattr(cache, "self_attention_cache", cache), "layers", ()):
        size, room = getattr(layer, "max_cache_len", None), getattr(layer, _ROOM, 0)
        if size is not None and room < n:
            layer.max_cache_len = size + n - room
            setattr(layer, _ROOM, n)
            # It gets its tensors anew, in the new size.
            layer.is_initialized = False
