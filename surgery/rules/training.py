"""The steps of a rule that are about training, read: `optimize`, `penalty` and `after step`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surgery.language import syntax
from surgery.language.diagnostics import did_you_mean, error
from surgery.language.source import Span
from surgery.rules.conditions import Requirement
from surgery.rules.dims import STEP, Dim
from surgery.rules.evaluate import condition, evaluate
from surgery.rules.expression import OPERATORS, SITES, Expression, param
from surgery.rules.names import Names
from surgery.rules.operands import scalar, tensor
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.ranges import OPTION
from surgery.rules.shapes import ONE, Shapes, show_shape
from surgery.rules.simplify import make
from surgery.rules.trained import AfterStep, PenaltyTerm, Tuning, Update
from surgery.rules.values import Closure, Opaque, Value, describe

Moment = Literal["penalty", "step"]


class TrainingNames:
    """The names that a penalty, or what follows a step, knows: those of ``body``, and its own.

    `step` counts the optimizer's steps, `sites` the sites of the method.
    """

    def __init__(self, body: Names, moment: Moment):
        self.body = body
        self.moment: Moment = moment
        self.scope, self.shapes = body.scope, body.shapes
        self.own: dict[str, Value] = {}

    def lookup(self, name: str, span: Span) -> Value | None:
        if name in self.own:
            return self.own[name]
        value = self.body.lookup(name, span)
        if isinstance(value, Expression) and value.varies:
            when = "after a step" if self.moment == "step" else "beside the loss"
            raise error(
                "S287",
                f"`{name}` flows through the model, and {when} there is nothing that does",
                span,
                help="params, states and the weight W are there",
            )
        if value is None and name in ("step", "sites"):
            return Dim.named(STEP if name == "step" else SITES)
        return value

    def known(self) -> list[str]:
        return [*self.own, *self.body.known(), "step", "sites"]

    def like(self) -> Expression | None:
        return self.body.like()

    def origin(self, e: syntax.Expression) -> tuple[Span, ...]:
        return self.body.origin(e)

    def demand(self, requirement: Requirement) -> None:
        if not requirement.condition.names() & {STEP, SITES}:
            self.body.demand(requirement)

    def call_block(self, block: Closure | Opaque, argument: Expression, span: Span) -> Expression:
        raise error("S287", "a block adds params, and these are declared by then", span)

    def evaluate(self, e: syntax.Expression) -> Value:
        return evaluate(e, self)


def tuning(step: syntax.Tune, names: Names) -> list[Tuning]:
    """`optimize A | B with lr * 16` in a rule.

    Raises:
        SurgeryError: S207 or S287 for what is no param of the rule, S280 for what is no number.

    """
    params = tuple(_declared(p.name, p.span, names) for p in step.params)
    found: list[Tuning] = []
    for setting in step.settings:
        value = scalar(names.evaluate(setting.value), setting.value.span)
        if STEP not in value.names():
            names.demand(OPTION.of(value, setting.value.span, names.origin(setting.value)))
        found.append(Tuning(params, setting.option, setting.operator, value, setting.span))
    return found


def penalty_term(value: syntax.Expression, span: Span, names: Names) -> PenaltyTerm:
    """`penalty EXPRESSION`.

    Raises:
        SurgeryError: S285 if it is more than one number.

    """
    made = tensor(evaluate(value, TrainingNames(names, "penalty")), value.span)
    if any(d != ONE for d in map(names.shapes.resolve, made.shape)):
        raise error(
            "S285",
            f"a penalty is one number for each site, and this is {show_shape(made.shape)}",
            value.span,
            help="take the `frobenius` norm, or the `sum` or `mean` over each dim",
        )
    return PenaltyTerm(made, span)


def after_step(step: syntax.After, names: Names) -> AfterStep:
    """`after step where TEST { … }`.

    Raises:
        SurgeryError: S287 for what is not there then, or cannot change.

    """
    known = TrainingNames(names, "step")
    where = None if step.where is None else condition(step.where, known)
    updates: list[Update] = []
    for inner in step.body:
        value = evaluate(inner.value, known)
        if isinstance(inner, syntax.Assign):
            updates.append(_update(inner, value, known))
            continue
        if isinstance(value, Expression) and value.number is None:
            name = f"let {inner.name}"
            updates.append(Update(name, value, inner.span))
            value = param(name, value.shape, inner.name_span)
        known.own[inner.name] = value
    return AfterStep(where, tuple(updates))


def _update(step: syntax.Assign, value: Value, known: TrainingNames) -> Update:
    name = _declared(step.target, step.target_span, known)
    now = known.lookup(step.target, step.target_span)
    assert isinstance(now, Expression)
    made = tensor(value, step.value.span)
    if step.operator != "=":
        op = OPERATORS[step.operator[0]]
        shape = PRIMITIVES[op].shape(known.shapes, (now, made), step.span, -1)
        made = make(op, (now, made), shape, span=step.span)
    if not known.shapes.fits(made.shape, now.shape, f"`{step.target}`", step.span):
        raise error(
            "S211",
            f"`{step.target}` is {show_shape(now.shape)}, and this is {show_shape(made.shape)}",
            step.value.span,
        )
    return Update(name, made, step.span)


def _declared(name: str, span: Span, names: Names) -> str:
    """The full name of a param or state of the rule."""
    value = names.lookup(name, span)
    if isinstance(value, Expression) and value.op == "param" and " " not in value.name:
        return value.name
    what = "is not known here" if value is None else f"is {describe(value)}"
    raise error(
        "S287",
        f"`{name}` {what}, and not a param or a state of this rule",
        span,
        help=did_you_mean(name, names.known()),
    )


@dataclass
class ParamNames:
    """The names that a `penalty` of a spec knows: params by the names of their rule, and numbers."""

    names: Names
    params: dict[str, Expression]
    numbers: dict[str, Value]

    def __post_init__(self) -> None:
        self.scope = self.names.scope
        self.shapes = Shapes()
        self.moment = "forward"

    def lookup(self, name: str, span: Span) -> Value | None:
        return self.params.get(name) or self.numbers.get(name) or self.names.lookup(name, span)

    def known(self) -> list[str]:
        return [*self.params, *self.numbers, *self.names.known()]

    def like(self) -> Expression | None:
        return next(iter(self.params.values()), None)

    def origin(self, e: syntax.Expression) -> tuple[Span, ...]:
        return self.names.origin(e)

    def demand(self, requirement: Requirement) -> None:
        self.names.demand(requirement)

    def call_block(self, block: Closure | Opaque, argument: Expression, span: Span) -> Expression:
        return self.names.call_block(block, argument, span)

    def evaluate(self, e: syntax.Expression) -> Value:
        return evaluate(e, self)
