"""What there is to say of a primitive of the rule language: the fields of its row.

Whatever decides something about a function that a rule calls asks its row, and no other place knows
the function by name. So a new one is a new row in `rules/primitives.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import SIGNS, STAR, Attribute, Expression, Shape
from surgery.rules.ranges import Range
from surgery.rules.shapes import Shapes

Arguments = tuple[Expression, ...]
ShapeRule = Callable[[Shapes, Arguments, Span | None, int], Shape]
"""The result's shape, or a :class:`SurgeryError`; the axis counts from the end."""
Attributes = tuple[tuple[str, Attribute], ...]
CostRule = Callable[[Expression], Dim]
Ways = tuple[tuple[int, ...], ...]
Form = Literal["values", "parts", "matrices", "over", "along", "training", "tokens", "dims", "none"]


def per_element(e: Expression) -> Dim:
    """One operation for each element of the result, for one position of the leading dims."""
    return elements(e)


def free(e: Expression) -> Dim:
    """What moves values about, at most."""
    return Dim.of(0)


def elements(e: Expression) -> Dim:
    """How many elements there are for one position of the leading dims."""
    size = Dim.of(1)
    for dim in e.shape:
        size = size * (Dim.of(1) if dim == STAR else dim)
    return size


@dataclass(frozen=True, repr=False)
class Primitive:
    """One row of the table; positions count the arguments that are no axis, from 0.

    How it is written
        ``arguments`` as the reference shows them: dims where a function asks for some, `?` behind
        what may be left out, ``over = d`` or ``along = d`` where it takes an axis. ``numbers`` are
        the arguments that are numbers known before the model runs, and which ones they may be.
        What has a sign is written with that.

    What it gives
        ``shape`` is its shape rule. ``reduces`` tells that the axis stays, with one element.

    How it runs
        ``torch`` is the path of its function, and ``form`` how that is called: with ``values`` that
        broadcast, with ``matrices`` and vectors as they are, ``over`` an axis (`dim=`, and
        `keepdim=True` if it ``reduces``), ``along`` one (the last argument), with whether the model
        is ``training`` as the last argument, over the ``tokens`` that are not padding, or with
        ``dims`` of any number, features last, and what its attributes say. ``none``:
        there is no function, and what changes attentions or tokens reads the expression.
        ``cost`` are its floating-point operations for one position of the leading dims.

    What is true of it
        ``linear`` has the sets of arguments in which it is linear together if the others are known.
        A zero at any of ``zeros`` makes the result zero (that of `linear` without its bias). ``neutral`` are a position and a number
        with which the result is the first of the other arguments; ``of_equals`` is the result of
        two equal arguments. ``of_numbers`` gives the result of numbers alone, None where it has no
        short form; ``of_constant`` that
        of a tensor which is one number everywhere, along an axis of some size. ``sums_to`` is the
        sum of the result over the axis; ``shorter`` an equal expression of some arguments, or None;
        ``parts`` the dims of each of several results; ``undoes`` what has its own argument as its result, with the same sizes. ``elementwise``: each feature of the result is made of the
        same feature of the arguments. ``rows`` are the arguments of which row i is all that row i
        of the result needs, beside the other arguments; none means that rows depend on one another.
        ``only_shape`` are arguments of which the shape alone counts. ``nonzero`` must not be zero.

    What else it does
        ``inference`` tells that its value is the first argument in evaluation, ``random`` that it
        is drawn in training, ``detaches`` that no gradient passes, ``mask`` that it is of ones and zeros,
        ``idempotent`` that twice is as
        good as once, and ``real`` that it is of real numbers: of complex ones torch computes it not
        at all, or makes real ones of them. ``stepping``: it is there after a step of the optimizer,
        where ``over_sites`` is the path of what takes it over all sites of a method.
    """

    name: str
    arguments: str
    says: str
    shape: ShapeRule
    torch: str = ""
    form: Form = "values"
    cost: CostRule = per_element
    linear: Ways = ()
    zeros: tuple[int, ...] = ()
    neutral: tuple[tuple[int, int], ...] = ()
    nonzero: tuple[int, ...] = ()
    of_equals: int | None = None
    of_numbers: Callable[..., Dim | None] | None = None
    of_constant: Callable[[Dim, Dim], Dim] | None = None
    sums_to: int | None = None
    shorter: Callable[..., Expression | None] | None = None
    undoes: str = ""
    parts: tuple[str, ...] = ()
    numbers: tuple[tuple[int, Range], ...] = ()
    reduces: bool = False
    elementwise: bool = False
    rows: tuple[int, ...] = ()
    only_shape: tuple[int, ...] = ()
    inference: bool = False
    random: bool = False
    detaches: bool = False
    mask: bool = False
    stepping: bool = False
    over_sites: str = ""
    idempotent: bool = False
    real: bool = False

    def __repr__(self) -> str:
        return f"<{self.usage}>"

    @property
    def usage(self) -> str:
        """How it is written."""
        if self.name == "negate":
            return f"-{self.arguments}"
        if self.name in SIGNS:
            return f" {SIGNS[self.name]} ".join(self.tensors)
        return f"{self.name}({self.arguments})"

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Its arguments but for the axis, as :attr:`arguments` shows them."""
        parts: list[str] = []
        for part in self.arguments.split(", "):
            if parts and parts[-1].count("[") > parts[-1].count("]"):
                parts[-1] += f", {part}"
            else:
                parts.append(part)
        return tuple(p for p in parts if " = " not in p)

    @cached_property
    def arity(self) -> tuple[int, int]:
        """How few and how many arguments it takes, the axis apart."""
        return sum("?" not in t for t in self.tensors), len(self.tensors)

    @cached_property
    def axis(self) -> str:
        """The keyword of its axis, which is a dim of an argument; empty if it has none."""
        last = self.arguments.rpartition(", ")[2]
        return last.partition(" = ")[0] if " = " in last else ""

    @property
    def is_additive(self) -> bool:
        """Whether it is linear in all of its arguments together, as a sum is."""
        return set(range(self.arity[1])) in map(set, self.linear)
