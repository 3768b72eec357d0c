"""What a walk through a model has noted: plain values and identities, each thing once."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any, cast

MOST = 1_000_000
"""Things in a snapshot: what leads to more is no part of a model, and nothing is kept of it."""

END = object()
"""Noted where something with attributes ends."""
_AGAIN = object()


class UnseenError(Exception):
    """Something was met of which it cannot be told whether it changes."""


class WalkNotes(ABC):
    """A list of what was met; ``hold`` to have identities last."""

    def __init__(self, hold: bool):
        self.hold = hold
        self.tokens: list[Any] = []
        self.held: list[weakref.ref[Any]] = []
        self.constants: list[Any] = []
        # What is met is kept while the walk lasts, so that no identity is another's in it.
        self.known: dict[int, tuple[int, Any]] = {}

    @abstractmethod
    def thing(self, thing: Any) -> None:
        """Note anything."""

    def same(self, thing: Any) -> None:
        """Note which one this is, and nothing of what is in it."""
        self.tokens.append(id(thing))
        if self.hold:
            try:
                self.held.append(weakref.ref(thing))
            except TypeError:
                self.constants.append(thing)

    def first(self, thing: Any) -> bool:
        """Whether this is met for the first time; that it is met again is noted."""
        if len(self.tokens) > MOST:
            raise UnseenError
        known = self.known.get(id(thing))
        if known is None:
            self.known[id(thing)] = len(self.known), thing
            return True
        self.tokens += (_AGAIN, known[0])
        return False

    def attributes(self, thing: Any) -> None:
        """What an object has in its own name space."""
        own = cast("dict[str, Any] | None", getattr(thing, "__dict__", None))
        for name, value in own.items() if own else ():
            self.tokens.append(name)
            self.thing(value)
        self.tokens.append(END)
