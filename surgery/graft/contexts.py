"""One machine of states for each model: adapted, merged or disabled.

Contexts are open or not, and that alone decides the state: the base shows while any `disabled` is
open, else the merged model while any `merged` is, else the adapted one. So contexts nest as they
like, and are left in any order. What a state changes is made when it first shows, and exchanged
with the adapted model until the last context of its kind is left (graft/exchange.py).

What is applied changes in the adapted state alone. Copies and pickles have what shows, and no
context open: nothing of this is on the model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from surgery.anatomy.state import uncollected
from surgery.graft.exchange import Exchange, exchanging
from surgery.graft.structure import Structure, all_or_nothing
from surgery.language.diagnostics import SurgeryError, error

Kind = Literal["disabled", "merged"]
Make = Callable[[nn.Module], None]
KINDS: tuple[Kind, ...] = ("disabled", "merged")
"""The first that is open shows."""


@dataclass(eq=False)
class _Open:
    """One open context, and who opened it."""

    kind: Kind
    make: Make
    thread: int = field(default_factory=threading.get_ident)


@dataclass(eq=False)
class _Machine:
    """The contexts open on one model, and the state that shows."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    open: list[_Open] = field(default_factory=list[_Open])
    made: dict[Kind, Exchange] = field(default_factory=dict[Kind, Exchange])
    shown: Kind | None = None
    changing: Structure | None = None

    def wanted(self) -> _Open | None:
        """A context of the kind that is to show."""
        return next((o for kind in KINDS for o in self.open if o.kind == kind), None)

    def show(self, model: nn.Module, opened: _Open | None) -> None:
        """Have ``model`` show the state of a context, or the adapted one."""
        kind = opened and opened.kind
        if kind != self.shown and self.shown is not None:
            left, self.shown = self.shown, None
            self.made[left].show(inside=False)
        if opened is not None and kind != self.shown:
            if opened.kind in self.made:
                self.made[opened.kind].show(inside=True)
            else:
                with torch.inference_mode(False), uncollected(), exchanging(model) as found:
                    opened.make(model)
                self.made[opened.kind] = found[0]
            self.shown = opened.kind

    def settle(self, model: nn.Module) -> None:
        """Show what the open contexts want, and forget states that none wants."""
        self.show(model, self.wanted())
        kinds = {o.kind for o in self.open}
        self.made = {kind: made for kind, made in self.made.items() if kind in kinds}

    def refuse_beside(self, kind: Kind | None, verb: str) -> None:
        me = threading.get_ident()
        other = next((o for o in self.open if o.thread != me and o.kind != kind), None)
        if other is not None:
            raise error(
                "S520",
                f"another thread has this model in `surgery.{other.kind}`, and {verb} would change "
                "under it",
                help="give each thread a model of its own: `copy.deepcopy(model)`",
            )


_MACHINES: weakref.WeakKeyDictionary[nn.Module, _Machine] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


def _machine(model: nn.Module) -> _Machine:
    with _GUARD:
        return _MACHINES.setdefault(model, _Machine())


class StateContext(ContextDecorator, AbstractContextManager[nn.Module]):
    """Shows a state of a model while it is entered, as often and as nested as one likes."""

    def __init__(self, model: nn.Module, kind: Kind, make: Make):
        self.model = model
        self.kind: Kind = kind
        self.make = make
        self._machine = _machine(model)
        self._entered: list[_Open] = []

    def __enter__(self) -> nn.Module:
        machine, opened = self._machine, _Open(self.kind, self.make)
        with machine.lock:
            machine.refuse_beside(self.kind, "it")
            machine.open.append(opened)
            try:
                machine.settle(self.model)
            except BaseException:
                machine.open.remove(opened)
                machine.settle(self.model)
                raise
            self._entered.append(opened)
        return self.model

    def __exit__(self, *_: object) -> None:
        machine = self._machine
        with machine.lock:
            machine.open.remove(self._entered.pop())
            try:
                machine.settle(self.model)
            except BaseException:
                machine.settle(self.model)
                raise

    def __del__(self) -> None:
        while getattr(self, "_entered", None):
            self.__exit__()


@contextmanager
def changing(model: nn.Module, verb: str) -> Generator[Structure]:
    """What is applied to ``model`` may change inside, as a whole: an exception undoes all of it.

    A verb within a verb is a part of that one, which undoes both.

    Raises:
        SurgeryError: S520 if a context is open.

    """
    machine = _machine(model)
    with machine.lock:
        if machine.open:
            raise _refusal(machine.open[-1].kind, verb)
        if machine.changing is not None:
            yield machine.changing
            return
        with torch.inference_mode(False), uncollected(), all_or_nothing(model) as structure:
            machine.changing = structure
            try:
                yield structure
            finally:
                machine.changing = None


def _refusal(kind: Kind, verb: str) -> SurgeryError:
    return error(
        "S520",
        f"`surgery.{verb}` changes what is applied, and the model is in `surgery.{kind}`",
        help=f"leave `{kind}` first",
    )


@contextmanager
def adapted(model: nn.Module) -> Generator[None]:
    """The adapted model shows inside, whichever contexts are open.

    Raises:
        SurgeryError: S520 if another thread has one open.

    """
    machine = _machine(model)
    with machine.lock:
        if machine.open:
            machine.refuse_beside(None, "it")
        try:
            machine.show(model, None)
            yield
        finally:
            machine.settle(model)


@contextmanager
def alone(model: nn.Module) -> Generator[None]:
    """No other thread changes ``model`` inside."""
    with _machine(model).lock:
        yield
