"""What a new parameter must be at a site: of a size, and of use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from surgery.language.diagnostics import Label, SurgeryError, error
from surgery.language.source import Span
from surgery.rules.acting import Lost
from surgery.rules.conditions import Condition, Requirement
from surgery.rules.dims import STEP, Dim, Scalar
from surgery.rules.expression import Expression, walk
from surgery.rules.limits import at_site, having_value
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.ranges import unmet
from surgery.rules.shapes import Equation, show_shape
from surgery.rules.values import Declaration

_MOST_ELEMENTS = 2**42


def check_requirements(
    requirements: Iterable[Requirement], equations: Iterable[Equation], sizes: Mapping[str, Scalar]
) -> None:
    """Hold what rules require, and the dims that they take for one, against a site's sizes.

    Raises:
        SurgeryError: S404 for an unmet `require`, S405 for dims that differ here.

    """
    for requirement in requirements:
        names = requirement.condition.names()
        if not names <= sizes.keys():
            continue
        labels = (*requirement.origins, requirement.span)
        values = ", ".join(f"{k} = {sizes[k]}" for k in sorted(names))
        with having_value(values, *labels):
            if not requirement.condition.holds(sizes):
                raise unmet(requirement, sizes)
    for equation in equations:
        left, right = (at_site(d, sizes, equation.span) for d in (equation.left, equation.right))
        if left != right:
            raise error(
                "S405", f"{equation.reason}: {left} is not {right} at this site", equation.span
            )


def check_divisors(values: Iterable[Expression], sizes: Mapping[str, Scalar]) -> None:
    """See that all numbers are known here, and that none is divided by zero.

    Raises:
        SurgeryError: S243 for the first.

    """
    for e in dict.fromkeys(e for value in values for e in walk(value)):
        if e.number is not None and e.number.names() <= sizes.keys():
            at_site(e.number, sizes, e.span)
        primitive = PRIMITIVES.get(e.op)
        for position in primitive.nonzero if primitive else ():
            by = e.arguments[position].number
            if by is not None and by.names() <= sizes.keys() and by.value(sizes) == 0:
                raise error("S243", "this divides by zero at this site", e.span)


def check_shape(declaration: Declaration, sizes: Mapping[str, Scalar]) -> None:
    declared = Label(declaration.span, f"declared {show_shape(declaration.shape)}")
    labels = (*declaration.origins, declared)
    shape = [at_site(d, sizes, *labels) for d in declaration.shape]
    name = declaration.name
    if any(not isinstance(d, int) or d < 1 for d in shape):
        raise error("S406", f"`{name}` would be {[*shape]} here", *labels)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise error("S406", f"`{name}` would be {[*shape]} here: no memory holds it", *labels)
    for _, value in declaration.init.arguments:
        if isinstance(value, Dim):
            at_site(value, sizes, *labels)
    start = declaration.init.value
    for e in walk(start) if start is not None else ():
        if e.number is not None:
            at_site(e.number, sizes, *labels)


def refuse_schedules(numbers: Iterable[tuple[Dim | Condition, Span]]) -> None:
    """Refuse what is a function of the step.

    Raises:
        SurgeryError: S289 for the first.

    """
    for value, span in numbers:
        if STEP in value.names():
            raise error(
                "S289",
                "this is a function of the step, and that is known only after a step",
                span,
                help="a `state` can be given its value in `after step { … }`, and be read here",
            )


def idle(declaration: Declaration, lost: Iterable[Lost]) -> SurgeryError:
    name = declaration.name.rpartition(".")[2]
    places = [x for x in lost if declaration.name in x.names and x.span is not None]
    labels = [Label(x.span, x.reason) for x in places[:1] if x.span]
    what = "does nothing" if declaration.frozen else "could never train"
    reason = places[0].reason if places else "nothing that it is part of is in the result"
    zero = any("its product" in x.reason for x in places)
    return error(
        "S225",
        f"`{name}` {what} here: {reason}",
        declaration.span,
        *labels,
        help="what is multiplied by 0 is off for good: leave it out instead" if zero else None,
    )
