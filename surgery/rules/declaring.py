"""The tensors that rules declare: params, states and draws, each with how it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.distributions import DISTRIBUTIONS, DRAWS
from surgery.rules.evaluate import evaluate
from surgery.rules.expression import Expression, Shape, is_leading, number, param
from surgery.rules.names import Names
from surgery.rules.naming import check_name
from surgery.rules.operands import scalar, tensor
from surgery.rules.ranges import SIZE, SPREAD, SPREADS
from surgery.rules.shapes import ONE, show_shape
from surgery.rules.state import State
from surgery.rules.trained import CLOCK
from surgery.rules.values import Declaration, Init, Value


class Declaring(Names, Protocol):
    """A body to which names are added."""

    state: State
    origins: dict[str, tuple[Span, ...]]

    def define(self, name: str, value: Value, span: Span) -> None: ...


def declare(step: syntax.Param, body: Declaring) -> None:
    """A param or a state joins what a method adds.

    Raises:
        SurgeryError: S212 or S211 for what is no size or start, S215 for a name that is taken, S217
            or S218 for what no param starts from.

    """
    shape = tuple(scalar(evaluate(d, body), d.span) for d in step.dims)
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
    init = _init(body, step, shape)
    made = _added(body, step.name, shape, init, step.name_span)
    made = replace(made, frozen=step.frozen, shared=step.shared, origins=origins, state=step.state)
    body.state.notes.declarations.append(made)
    body.define(step.name, param(made.name, shape, step.name_span), step.name_span)


def declare_draw(step: syntax.Draw, body: Declaring) -> None:
    """A state that is drawn anew for each step of training; in evaluation it is fixed."""
    shape = tuple(scalar(evaluate(d, body), d.span) for d in step.dims or ()) or (ONE,)
    init = Init(*_distribution(body, step.distribution, DRAWS, "draw"))
    made = _added(body, step.name, shape, init, step.name_span)
    made = replace(made, frozen=True, shared=step.shared, state=True, drawn=True)
    body.state.notes.declarations.append(made)
    fixed = _fixed(init, shape)
    if step.otherwise is not None:
        fixed = scalar(evaluate(step.otherwise, body), step.otherwise.span)
    arguments = param(made.name, shape, step.name_span), number(fixed, step.span)
    nested = ("nested", init.distribution == "nested")
    value = Expression("drawn", arguments, (nested,), shape, step.span)
    body.define(step.name, value, step.name_span)
    declare_clock(step.name_span, body)


def declare_clock(span: Span, body: Declaring) -> None:
    """What counts the steps; once for all of a method."""
    name = f"{body.state.notes.child}{CLOCK}"
    if not any(d.name == name for d in body.state.notes.declarations):
        init = Init(None, value=number(0, span))
        made = Declaration(name, (Dim.of(2),), init, True, "shared", span, state=True)
        body.state.notes.declarations.append(made)


def _added(
    body: Declaring, own: str, shape: tuple[Dim, ...], init: Init, span: Span
) -> Declaration:
    """A new tensor, whose name no other has."""
    name = body.path + own
    for part in name.split("."):
        check_name(part, span)
    earlier = next((d for d in body.state.notes.declarations if _clash(d.name, name)), None)
    if earlier:
        twice = earlier.name == name
        raise error(
            "S215",
            f"the param `{name}` is declared twice"
            if twice
            else f"`{min(name, earlier.name)}` names a param and what holds `{max(name, earlier.name)}`",
            span,
            Label(earlier.span, "first"),
        )
    return Declaration(name, shape, init, False, None, span)


def _init(body: Declaring, step: syntax.Param, shape: tuple[Dim, ...]) -> Init:
    if not step.random:
        value = tensor(evaluate(step.init, body), step.init.span)
        if value.varies:
            raise error(
                "S217", "a param cannot start from what flows through the model", step.init.span
            )
        if not body.shapes.fits(value.shape, shape, "param", step.span):
            raise error(
                "S211",
                f"`{step.name}` is {show_shape(shape)} and its start {show_shape(value.shape)}",
                step.init.span,
                Label(step.name_span, "declared here"),
            )
        return Init(None, value=value)
    distribution, given = _distribution(body, step.init, DISTRIBUTIONS, "param")
    std = dict(given).get("std", dict(given).get("bound"))
    if isinstance(std, Dim) and std.number == 0:
        return Init(None, value=number(0, step.init.span))
    return Init(distribution, given)


def _distribution(
    body: Declaring, e: syntax.Expression, known: Mapping[str, tuple[str, ...]], what: str
) -> tuple[str, tuple[tuple[str, Dim | str], ...]]:
    """A distribution of those ``known``, with its arguments."""
    if not isinstance(e, syntax.Call) or e.function not in known:
        of = "a distribution" if what == "param" else "what it is drawn from"
        raise error("S218", f"`~` takes {of}", e.span, help=f"one of {', '.join(known)}")
    names = known[e.function]
    given: dict[str, Dim | str] = {}
    for position, argument in enumerate(e.arguments):
        name = argument.name or (names[position] if position < len(names) else "")
        if name not in names or name in given:
            takes = f"`{e.function}` takes {', '.join(names) or 'nothing'}"
            raise error("S218", takes, argument.span)
        value = evaluate(argument.value, body)
        if name == "text" and isinstance(value, str):
            given[name] = value
        else:
            number_ = given[name] = scalar(value, argument.span)
            if name in SPREADS:
                body.demand(SPREAD.of(number_, argument.span, body.origin(argument.value)))
    missing = [n for n in names if n not in given]
    if missing:
        raise error("S218", f"`{e.function}` needs {', '.join(missing)}", e.span)
    return e.function, tuple(given.items())


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


def _clash(one: str, other: str) -> bool:
    """Whether no module can have both: they are one, or one stands within the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
