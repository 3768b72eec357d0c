"""An operator while methods are applied to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.rules.affine import NotAffine, merge
from surgery.rules.dims import Dim
from surgery.rules.expression import IN, OUT, STAR, Expression, operand
from surgery.rules.shapes import Shapes
from surgery.rules.values import Condition, Declaration, HostModule, Value

Kind = Literal["linear", "module"]
OPERANDS: dict[str, tuple[str, ...]] = {
    "linear": ("x", "W", "b"),
    "module": ("x", "residual", "norm"),
}


@dataclass(frozen=True)
class Requirement:
    condition: Condition
    span: Span


@dataclass
class State:
    """An operator while methods are applied to it. ``result`` is its value as a function of x."""

    kind: Kind
    origin: Expression
    """The operator as the current method found it."""
    result: Expression
    operands: dict[str, Expression | None]
    shapes: Shapes
    has_norm: bool = False
    declarations: list[Declaration] = field(default_factory=list[Declaration])
    requirements: list[Requirement] = field(default_factory=list[Requirement])
    named_dims: int | None = None
    """How many leading dims a rule named (`x[z, s, d]`: 2); None where none did."""
    given: list[Expression] = field(default_factory=list[Expression])
    """Tensors handed to a method that is not known yet (a verb checked on its own)."""
    grouped: bool = False
    """Whether the outputs read different inputs, as those of a grouped convolution do."""
    rebound: bool = False
    changed: bool = False


def operator(
    kind: Kind,
    *,
    bias: bool = True,
    norm: bool = False,
    residual: bool = False,
    strict: bool = False,
    grouped: bool = False,
    out: Dim = OUT,
    into: Dim = IN,
) -> State:
    """A fresh operator: W is [out, into], x is [*, into], the result [*, out]."""
    x = operand("x", (STAR, into))
    operands: dict[str, Expression | None] = {"x": x}
    if kind == "linear":
        weight = operand("W", (out, into))
        offset = operand("b", (out,)) if bias else None
        operands |= {"W": weight, "b": offset}
        arguments = (x, weight, offset) if offset else (x, weight)
        result = Expression("linear", arguments, (), (STAR, out))
    else:
        result = Expression("base", (x,), (), (STAR, out))
    operands["residual"] = operand("residual", (STAR, out)) if residual else None
    return State(kind, result, result, operands, Shapes(strict=strict), norm, grouped=grouped)


def read_operand(state: State, target: str, span: Span) -> Value | None:
    if target == "y":
        return state.result
    if target == "norm":
        return HostModule("norm", state.has_norm)
    if target in ("W", "b"):
        return effective(state, target, span)
    value = state.operands.get(target)
    return Dim.of(0) if value is None else value


def effective(state: State, target: str, span: Span) -> Expression:
    """`W` or `b` with the effect of the methods already at this site in it."""
    found = merge(state.origin, state.grouped)
    if isinstance(found, NotAffine):
        raise error(
            "S402",
            f"this reads `{target}`, and what stands at the site has none: {found.reason}",
            span,
            found.span and Label(found.span, "not affine in the input"),
            help="put the method that reads the weight first",
        )
    return found.weight if target == "W" else found.bias
