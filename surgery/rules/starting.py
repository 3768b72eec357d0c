"""How a param starts: a computed value, or a distribution with its arguments."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.rules.dims import Dim
from surgery.rules.distributions import DISTRIBUTIONS
from surgery.rules.evaluate import evaluate
from surgery.rules.expression import number
from surgery.rules.names import Names
from surgery.rules.operands import scalar, tensor
from surgery.rules.ranges import SPREAD, SPREADS
from surgery.rules.shapes import show_shape
from surgery.rules.values import Init


def start(step: syntax.Param, shape: tuple[Dim, ...], names: Names) -> Init:
    """How the param of ``step`` starts.

    Raises:
        SurgeryError: S211 and S217 for a value that does not fit, S218 for what is no distribution.

    """
    if not step.random:
        value = tensor(evaluate(step.init, names), step.init.span)
        if value.varies:
            raise error(
                "S217", "a param cannot start from what flows through the model", step.init.span
            )
        if not names.shapes.fits(value.shape, shape, "param", step.span):
            raise error(
                "S211",
                f"`{step.name}` is {show_shape(shape)} and its start {show_shape(value.shape)}",
                step.init.span,
                Label(step.name_span, "declared here"),
            )
        return Init(None, value=value)
    kind, given = distribution(names, step.init, DISTRIBUTIONS, "param")
    std = dict(given).get("std", dict(given).get("bound"))
    if isinstance(std, Dim) and std.number == 0:
        return Init(None, value=number(0, step.init.span))
    return Init(kind, given)


def distribution(
    names: Names, e: syntax.Expression, known: Mapping[str, tuple[str, ...]], what: str
) -> tuple[str, tuple[tuple[str, Dim | str], ...]]:
    """A distribution of those ``known``, with its arguments."""
    if not isinstance(e, syntax.Call) or e.function not in known:
        of = "a distribution" if what == "param" else "what it is drawn from"
        raise error("S218", f"`~` takes {of}", e.span, help=f"one of {', '.join(known)}")
    formal = known[e.function]
    given: dict[str, Dim | str] = {}
    for position, argument in enumerate(e.arguments):
        name = argument.name or (formal[position] if position < len(formal) else "")
        if name not in formal or name in given:
            takes = f"`{e.function}` takes {', '.join(formal) or 'nothing'}"
            raise error("S218", takes, argument.span)
        value = evaluate(argument.value, names)
        if name == "text" and isinstance(value, str):
            given[name] = value
        else:
            number_ = given[name] = scalar(value, argument.span)
            if name in SPREADS:
                names.demand(SPREAD.of(number_, argument.span, names.origin(argument.value)))
    missing = [n for n in formal if n not in given]
    if missing:
        raise error("S218", f"`{e.function}` needs {', '.join(missing)}", e.span)
    return e.function, tuple(given.items())
