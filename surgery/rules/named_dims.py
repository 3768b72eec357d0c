"""Dims by name: how they are found in a tensor's shape, and what calls that name them are given.

A dim is found by the name that a rule gives it, and by its size where it has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError, error
from surgery.language.source import Span
from surgery.rules.conditions import Requirement
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, Shape
from surgery.rules.operands import scalar, tensor
from surgery.rules.primitive import Arguments, Primitive
from surgery.rules.shapes import Shapes, show_shape


class Caller(Protocol):
    """What reading a call asks of the names around it."""

    shapes: Shapes

    def evaluate(self, e: syntax.Expression) -> Any: ...
    def origin(self, e: syntax.Expression) -> tuple[Span, ...]: ...
    def demand(self, requirement: Requirement) -> None: ...
    def like(self) -> Expression | None: ...


def positions(shape: Shape, dim: Dim, label: str, shapes: Shapes) -> list[int]:
    """Where ``dim`` is in ``shape``: as it is called there, else by its size."""
    wanted = shapes.resolve(dim)
    found = [i for i, d in enumerate(shape) if shapes.resolve(d) == wanted]
    for name in filter(None, (label, dim.label)):
        called = [i for i in found if shape[i].label == name]
        if called:
            return called
    return found


def position(value: Expression, name: syntax.Expression, names: Caller) -> int:
    dim, label = dim_named(name, names)
    places = positions(value.shape, dim, label, names.shapes)
    if len(places) != 1:
        raise unclear(dim, label, value.shape, places, name.span)
    return places[0]


def unclear(dim: Dim, label: str, shape: Shape, places: Iterable[int], span: Span) -> SurgeryError:
    problem = "more than one of" if places else "none of"
    return error("S214", f"`{label or dim}` is {problem} the dims {show_shape(shape)}", span)


def dim_named(name: syntax.Expression, names: Caller) -> tuple[Dim, str]:
    label = name.name if isinstance(name, syntax.Name) else ""
    return scalar(names.evaluate(name), name.span), label


def factors(e: syntax.Expression) -> list[syntax.Expression]:
    """The names in `g * c`."""
    if not isinstance(e, syntax.Binary):
        return [e]
    first, run = syntax.spine(e)
    if any(step.operator != "*" for step in run):
        return [e]
    return [*factors(first), *(f for step in run for f in factors(step.right))]


def tensors_of(
    call: syntax.Call, names: Caller, count: int, keyword: str | None = None
) -> tuple[list[Expression], syntax.Argument | None]:
    """The ``count`` tensors of a call, and its one named argument."""
    given = [a for a in call.arguments if a.name is None]
    named = [a for a in call.arguments if a.name is not None]
    if len(given) != count:
        wanted = f"{count} tensor{'s' * (count > 1)}"
        raise error("S208", f"`{call.function}` takes {wanted}, not {len(given)}", call.span)
    if len(named) > 1 or (keyword and named and named[0].name != keyword):
        wanted = f"`{keyword} = …`" if keyword else "one dim by name"
        raise error("S208", f"`{call.function}` takes {wanted}", named[-1].span)
    values = [tensor(names.evaluate(a.value), a.value.span) for a in given]
    for value, argument in zip(values, given, strict=True):
        if value.number is not None and not value.shape:
            problem = f"`{call.function}` takes tensors, and this is a number"
            raise error("S212", problem, argument.span)
    return values, named[0] if named else None


def labelled(value: Expression, labels: tuple[str, ...]) -> Expression:
    """``value`` with what a rule calls its last dims."""
    if not labels or len(labels) > len(value.shape):
        return value
    kept = value.shape[: -len(labels)]
    named = (d.called(n) for d, n in zip(value.shape[-len(labels) :], labels, strict=True))
    return replace(value, shape=(*kept, *named))


def axis_of(primitive: Primitive, arguments: Arguments, e: syntax.Call, names: Caller) -> int:
    """The axis, counted from the end, that a dim is of the last argument that has it."""
    given = next((a.value for a in e.arguments if a.name == primitive.axis), None)
    if given is None:
        raise error("S208", f"`{primitive.name}` needs `{primitive.axis} = DIM`", e.span)
    dim = scalar(names.evaluate(given), given.span)
    label = given.name if isinstance(given, syntax.Name) else ""
    places: list[int] = []
    for value in reversed(arguments):
        found = positions(value.shape, dim, label, names.shapes)
        places = [i - len(value.shape) for i in found]
        if places:
            break
    if len(places) != 1:
        problem = "none of" if not places else "more than one of"
        raise error(
            "S214", f"`{dim}` is {problem} the dims {show_shape(arguments[-1].shape)}", e.span
        )
    return places[0]
