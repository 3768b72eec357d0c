"""Which of the base's own parameters train and freeze, folded for reading."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from surgery.planning.plan import Plan
from surgery.reports.context import ModelContext
from surgery.reports.figures import Family, dimensions, families, millions, some

_FORM = re.compile(r"(\S+) ([\d×]*)")


@dataclass(frozen=True)
class Parameters:
    """Base parameters that go the same way. ``changed`` counts those that went another before."""

    verb: str
    names: tuple[str, ...]
    elements: int
    changed: int

    def __str__(self) -> str:
        of = f"{some(len(self.names), 'base parameter')} ({millions(self.elements)})"
        if self.changed == len(self.names):
            return of
        was = "trainable" if self.verb == "train" else "frozen"
        same = len(self.names) - self.changed
        return f"{of}, {f'{same:,} of them ' if self.changed else ''}already {was}"


def training_of(plan: Plan, context: ModelContext) -> tuple[Parameters, Parameters]:
    """What ``plan`` trains and what it freezes."""
    trained = sum(not context.flags[n] for n in plan.trained)
    frozen = sum(context.flags[n] for n in plan.frozen)
    return (
        Parameters("train", plan.trained, _elements(plan, plan.trained), trained),
        Parameters("freeze", plan.frozen, _elements(plan, plan.frozen), frozen),
    )


def shape_of(plan: Plan, name: str) -> tuple[int, ...]:
    """The shape of a base parameter."""
    form = _FORM.match(plan.digests[name])
    return tuple(int(d) for d in form[2].split("×") if d) if form else ()


def shaped(plan: Plan, names: Iterable[str]) -> list[tuple[Family, str]]:
    """``names`` folded, with the shapes of each family."""
    shapes: dict[str, tuple[int, ...]] = {n: shape_of(plan, n) for n in names}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    found = [(f, dimensions(s)) for s, members in by_shape.items() for f in families(members)]
    order = {name: i for i, name in enumerate(shapes)}
    return sorted(found, key=lambda pair: order[pair[0].members[0]])


def tied(plan: Plan, context: ModelContext) -> list[str]:
    """A note for each parameter that trains under several names."""
    return [
        f"{name} is tied with {', '.join(context.aliases[name])}, which are trained with it"
        for name in plan.trained
        if name in context.aliases
    ]


def _elements(plan: Plan, names: Iterable[str]) -> int:
    return sum(math.prod(shape_of(plan, n)) for n in names)
