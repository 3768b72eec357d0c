"""Two states of one model, exchanged: what differs between them is swapped, forth and back.

What is hidden while the other state shows follows the model where it is cast or moved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surgery.graft.container import Graft
from surgery.graft.first import STANDS_IN, FirstValues
from surgery.graft.structure import (
    Before,
    Structure,
    Table,
    all_or_nothing,
    graph_changed,
    recompile,
    same,
    same_memory,
    set_class,
    set_flag,
)

GONE: Any = object()
"""Stands for an entry that a table lacks in one of the states."""

_EPOCHS = count(1)


class Casting(Protocol):
    """What can be cast and moved as a module can."""

    def _apply(self, fn: Callable[[Tensor], Tensor], /) -> Any: ...


class Difference:
    """One thing that differs; ``inside`` says whether the model has the state that was made last."""

    inside = True

    def show(self, inside: bool) -> None:
        if inside is not self.inside:
            self.swap()
            self.inside = inside

    def swap(self) -> None:
        raise NotImplementedError


class _Class(Difference):
    def __init__(self, module: nn.Module, other: type[nn.Module]):
        self.module, self.other = module, other

    def swap(self) -> None:
        now = type(self.module)
        set_class(self.module, self.other)
        self.other = now


class _Entry(Difference):
    """An attribute, or the entry of a table of parameters, in its place in ``order``."""

    def __init__(self, table: Table, key: str, other: Any, order: Iterable[str] = ()):
        self.table, self.key, self.other, self.order = table, key, other, tuple(order)
        self.beside = _first_cast(table) if order else None
        self.form = None if self.beside is None else _form(self.beside)

    def swap(self) -> None:
        table, now = self.table, self.table.get(self.key, GONE)
        if self.beside is not None and self.form and isinstance(self.other, nn.Parameter):
            self.other.data = _follow(self.form, self.beside)(self.other.data)
        if self.other is GONE:
            table.pop(self.key, None)
        else:
            table[self.key] = self.other
        if now is GONE and self.order:
            there = {k: table[k] for k in self.order if k in table} | table
            table.clear()
            table.update(there)
        self.other = now


class _Children(Difference):
    """A table of children: grafts come and go, and what else was done to it since stays done."""

    def __init__(self, table: Table, other: Table):
        self.table, self.other, self.made = table, other, dict(table)

    def swap(self) -> None:
        now = dict(self.table)
        changed = {k: v for k, v in now.items() if self.made.get(k, GONE) is not v}
        lost = [k for k in self.made if k not in now]
        there = {k: v for k, v in self.other.items() if k not in lost} | changed
        self.table.clear()
        self.table.update(there)
        self.other, self.made = now, there


class _Content(Difference):
    """The memory of a parameter.

    Versions are swapped, too: autograd then tells a result computed in one state, of which the
    gradient is wanted in the other, and raises an error.
    """

    def __init__(self, parameter: nn.Parameter, other: Tensor):
        self.parameter, self.other = parameter, other
        self.form = _form(parameter)
        self.version = _version(parameter)
        if self.version is not None:
            _set_version(parameter, (self.version + (next(_EPOCHS) << 12)) % 2**31)

    def swap(self) -> None:
        parameter, now, version = self.parameter, self.parameter.data, _version(self.parameter)
        shown, form = _follow(self.form, parameter)(self.other), _form(parameter)
        # What is interrupted is done again, so nothing that can be stands behind the change.
        if version is not None and self.version is not None:
            _set_version(parameter, self.version)
            self.version = version
        parameter.data = shown
        self.other, self.form = now, form


class _Flags(Difference):
    """Which parameters train."""

    def __init__(self, other: list[tuple[nn.Parameter, bool]]):
        self.other = other

    def swap(self) -> None:
        now = [(p, p.requires_grad) for p, _ in self.other]
        try:
            for parameter, flag in self.other:
                set_flag(parameter, flag)
        except BaseException:
            for parameter, flag in now:
                set_flag(parameter, flag)
            raise
        self.other = now


class _Hidden(Difference):
    """What no one sees inside, and follows ``beside``, a parameter that all see."""

    def __init__(self, hidden: Casting, beside: nn.Parameter):
        self.hidden, self.beside = hidden, beside
        self.form = _form(beside)

    def swap(self) -> None:
        if self.inside and _form(self.beside) != self.form:
            self.hidden._apply(_follow(self.form, self.beside))
        self.form = _form(self.beside)


class Exchange:
    """What differs between a state of ``before`` and the one that the model has now."""

    def __init__(self, before: Structure):
        hidden: list[Difference] = []
        slots: list[Difference] = []
        parameters = dict(before.parameters)
        for one in before.modules:
            slots += _slots(one)
            hidden += _hidden(before.model, one)
            for p in one.module._parameters.values():
                if p is not None and id(p) not in parameters:
                    parameters[id(p)] = (p, p.data, p.requires_grad)
        moved = [(p, data) for p, data, _ in parameters.values() if not same_memory(p, data)]
        slots += [_Content(parameter, data) for parameter, data in moved]
        slots.append(_Flags([(p, flag) for p, _, flag in parameters.values()]))
        touched = {id(parameter) for parameter, _ in moved}
        for one in before.modules if touched else ():
            # Whatever stands there when the memory is swapped back, this parameter is to have it.
            table = one.module._parameters
            for key in [k for k, p in table.items() if id(p) in touched]:
                slots.append(_Entry(table, key, table[key], table))
                slots.append(_Entry(one.module.__dict__, key, GONE))
        self.slots: list[Difference] = [*hidden, *slots]
        self.graphs = [b.module for b in before.modules if graph_changed(b)]

    def show(self, inside: bool) -> None:
        """Put the model in the state that was made last, or in the one before.

        An interrupt is raised when all is done, not between.
        """
        order = self.slots if not inside else self.slots[::-1]
        try:
            for slot in order:
                slot.show(inside)
        except BaseException:
            for slot in order:
                slot.show(inside)
            raise
        finally:
            recompile(self.graphs)


@contextmanager
def exchanging(model: nn.Module) -> Generator[list[Exchange]]:
    """Collects, in the list it gives, the exchange that undoes what is done inside."""
    found: list[Exchange] = []
    with all_or_nothing(model) as before:
        yield found
        found.append(Exchange(before))


def _slots(before: Before) -> list[Difference]:
    module, found = before.module, list[Difference]()
    if type(module) is not before.cls:
        found.append(_Class(module, before.cls))
    for table, content, order in (
        (module.__dict__, before.attributes, ()),
        (module._parameters, before.parameters, before.parameters),
    ):
        if not same(table, content):
            names = _differing(table, content)
            found += [_Entry(table, k, content.get(k, GONE), order) for k in names]
    if not same(module._modules, before.children):
        found.append(_Children(module._modules, before.children))
    return found


def _differing(table: Table, content: Table) -> list[str]:
    keys = dict.fromkeys([*content, *table])
    return [k for k in keys if table.get(k, GONE) is not content.get(k, GONE)]


def _hidden(model: nn.Module, before: Before) -> list[Difference]:
    """What of a module no one sees in the state that it has now: its grafts, and first values."""
    gone: list[Casting] = []
    children = before.module._modules
    for name, child in before.children.items():
        if isinstance(child, Graft) and children.get(name) is not child:
            gone.append(child)
    held = before.attributes.get(STANDS_IN)
    if held is not None and before.module.__dict__.get(STANDS_IN) is not held:
        gone += [held] if isinstance(held, FirstValues) else []
    beside = _beside(model, before.module) if gone else None
    return [] if beside is None else [_Hidden(thing, beside) for thing in gone]


def _beside(model: nn.Module, module: nn.Module) -> nn.Parameter | None:
    """A parameter that is cast and moved when ``module`` is."""
    own = _first_cast(module._parameters)
    if own is not None:
        return own
    return next((p for m in (module, model) for p in m.parameters() if _casts(p)), None)


def _first_cast(table: Table) -> nn.Parameter | None:
    for thing in table.values():
        if _casts(thing):
            return thing
    return None


def _casts(thing: Any) -> bool:
    """Whether it is a parameter that shows what its module is cast to."""
    return isinstance(thing, nn.Parameter) and thing.is_floating_point()


Form = tuple[torch.dtype, torch.device]


def _form(parameter: nn.Parameter) -> Form:
    return parameter.dtype, parameter.device


def _follow(before: Form, parameter: nn.Parameter) -> Callable[[Tensor], Tensor]:
    """Casts and moves tensors as ``parameter`` was since it had the form ``before``."""
    dtype = parameter.dtype if parameter.dtype != before[0] else None
    device = parameter.device if parameter.device != before[1] else None

    def convert(tensor: Tensor) -> Tensor:
        cast = dtype if tensor.is_floating_point() or tensor.is_complex() else None
        return tensor.to(device=device, dtype=cast)

    return convert


def _version(tensor: Tensor) -> int | None:
    try:
        return tensor._version
    except RuntimeError:  # what was an inference tensor has none
        return None


def _set_version(tensor: Tensor, version: int) -> None:
    untyped: Any = torch._C
    untyped._autograd._unsafe_set_version_counter((tensor,), (version,))
