"""What was made of a model, kept beside it until the model changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import nn

from surgery.anatomy.notes import UnseenError
from surgery.anatomy.paths import Paths
from surgery.anatomy.snapshot import Snapshot, numbers_of
from surgery.anatomy.state import uncollected


class Readable(Protocol):
    """What can be kept: it holds neither the model nor tensors, if it is ``lasting``.

    ``deciding`` are the parameters and buffers whose numbers it depends on; None for all.
    """

    lasting: bool
    deciding: frozenset[str] | None


T = TypeVar("T", bound=Readable)


@dataclass(frozen=True)
class _Kept:
    """What was made of a model as the ``snapshot`` shows it, with a digest of the numbers that count."""

    snapshot: Snapshot
    paths: Paths
    things: dict[Hashable, tuple[Any, str]] = field(default_factory=dict[Hashable, tuple[Any, str]])


_KEPT: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


@uncollected()
def kept(model: nn.Module, given: Any, key: Hashable, make: Callable[[Paths], T]) -> T:
    """What ``make`` gives for the names of ``model``; what it gave before, if nothing has changed.

    ``key`` tells apart what is made in several ways of one model and the inputs ``given`` for it.
    Where it cannot be told whether the model has changed, it is made each time.
    """
    now = _snapshot(model, given)
    if now is None:
        return make(Paths(model))
    with _GUARD:
        found = _KEPT.get(model)
    if found is None or not found.snapshot.shows(now):
        found = _Kept(Snapshot(model, given), Paths(model))
        with _GUARD:
            _KEPT[model] = found
    if key in found.things:
        thing, numbers = found.things[key]
        if numbers == _numbers(thing, found.paths, now):
            return thing
    made = make(found.paths)
    numbers = _numbers(made, found.paths, now)
    if made.lasting and numbers is not None:
        found.things[key] = made, numbers
    return made


def forget(model: nn.Module) -> None:
    """Keep nothing of ``model``: what is asked of it next is made anew."""
    with _GUARD:
        _KEPT.pop(model, None)


def _snapshot(model: nn.Module, given: Any) -> Snapshot | None:
    try:
        return Snapshot(model, given, hold=False)
    except Exception:
        # It may have asked any object for what that cannot tell.
        return None


def _numbers(made: Readable, paths: Paths, now: Snapshot) -> str | None:
    """A digest of the numbers that something depends on; None if they cannot be read."""
    if made.deciding is None:
        tensors = now.tensors
    else:
        tensors = [paths.tensor(name) for name in sorted(made.deciding)]
    try:
        return numbers_of(tensors)
    except UnseenError:
        return None
