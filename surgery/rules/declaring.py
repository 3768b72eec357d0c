"""The tensors that rules declare: params, states and draws, each with how it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from surgery.language import syntax
from surgery.language.diagnostics import error
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.distributions import DRAWS
from surgery.rules.evaluate import evaluate
from surgery.rules.expression import Expression, Shape, is_leading, number, param
from surgery.rules.names import Names
from surgery.rules.naming import check_name
from surgery.rules.operands import scalar
from surgery.rules.placing import is_again
from surgery.rules.ranges import SIZE
from surgery.rules.shapes import ONE
from surgery.rules.starting import distribution, start
from surgery.rules.state import State
from surgery.rules.trained import CLOCK
from surgery.rules.values import Declaration, Init, Value


class Declaring(Names, Protocol):
    """A body to which names are added."""

    state: State
    path: str
    origins: dict[str, tuple[Span, ...]]

    def define(self, name: str, value: Value, span: Span) -> None: ...


def declare(step: syntax.Param, body: Declaring) -> None:
    """A param or a state joins what a method adds.

    Raises:
        SurgeryError: S212 or S211 for what is no size or start, S215 for a name that is taken, S217
            or S218 for what no param starts from.

    """
    shape = tuple(_dim(d, body) for d in step.dims)
    if any(map(is_leading, shape)):
        raise error(
            "S212",
            "a param has a fixed shape, without `*` or dims that each forward has its own of",
            step.span,
        )
    for dim, size in zip(step.dims, shape, strict=True):
        if size.number is not None:
            body.demand(SIZE.of(size, dim.span, body.origin(dim)))
    origins = tuple(dict.fromkeys(o for d in step.dims for o in origin_of(d, body.origins)))
    init = start(step, shape, body)
    name, span = body.path + step.name, step.name_span
    made = Declaration(name, shape, init, step.frozen, step.shared, span, origins, step.state)
    _added(body, made)
    body.define(step.name, param(name, shape, span), span)


def _dim(e: syntax.Expression, body: Declaring) -> Dim:
    """A dim of a param, called as it is written."""
    size = scalar(evaluate(e, body), e.span)
    if isinstance(e, syntax.NamedDim):
        size = size.called(e.name)
        body.define(e.name, size, e.name_span)
        body.origins[e.name] = body.origin(e.size)
        return size
    return size.called(e.name) if isinstance(e, syntax.Name) else size


def declare_draw(step: syntax.Draw, body: Declaring) -> None:
    """A state that is drawn anew for each step of training; in evaluation it is fixed."""
    shape = tuple(_dim(d, body) for d in step.dims or ()) or (ONE,)
    init = Init(*distribution(body, step.distribution, DRAWS, "draw"))
    name, span = body.path + step.name, step.name_span
    made = Declaration(name, shape, init, True, step.shared, span, state=True, drawn=True)
    _added(body, made)
    if init.distribution == "nested":
        body.demand(SIZE.of(scalar_of(init, "low"), span, body.origin(step.distribution)))
    fixed = _fixed(init, shape)
    if step.otherwise is not None:
        fixed = scalar(evaluate(step.otherwise, body), step.otherwise.span)
        if init.distribution == "nested":
            body.demand(SIZE.of(fixed, step.otherwise.span, body.origin(step.otherwise)))
    arguments = param(name, shape, span), number(fixed, step.span)
    nested = ("nested", init.distribution == "nested")
    value = Expression("drawn", arguments, (nested,), shape, step.span)
    body.define(step.name, value, span)
    declare_clock(span, body)


def declare_clock(span: Span, body: Declaring) -> None:
    """What counts the steps; once for all of a method."""
    name = f"{body.state.notes.child}{CLOCK}"
    if not any(d.name == name for d in body.state.notes.declarations):
        init = Init(None, value=number(0, span))
        made = Declaration(name, (Dim.of(2),), init, True, "shared", span, state=True)
        body.state.notes.declarations.append(made)


def _added(body: Declaring, made: Declaration) -> None:
    """``made`` joins what a method adds, if it is no second use of what has declared it before."""
    for part in made.name.split("."):
        check_name(part, made.span)
    if not is_again(made, body.state.notes.declarations, body.shapes):
        body.state.notes.declarations.append(made)


def scalar_of(init: Init, name: str) -> Dim:
    """An argument of a distribution, as a number."""
    value = dict(init.arguments)[name]
    assert isinstance(value, Dim)
    return value


def _fixed(init: Init, shape: Shape) -> Dim:
    """What a draw is in evaluation, unless its rule says so: the most that it can be, or its mean."""
    if init.distribution == "nested":
        return shape[-1]
    given = dict(init.arguments)
    high = given.get("high")
    if isinstance(high, Dim):
        return high
    return Dim.of(1 if init.distribution == "bernoulli" else 0)


def origin_of(e: syntax.Expression, known: Mapping[str, tuple[Span, ...]]) -> tuple[Span, ...]:
    """Where the numbers behind the names in ``e`` were written, as far as it is ``known``."""
    found = dict.fromkeys(o for name, _ in syntax.mentions(e) for o in known.get(name, ()))
    return tuple(found)[:3]
