"""An operator while methods are applied to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.rules.affine import NotAffine, merge
from surgery.rules.conditions import Requirement
from surgery.rules.dims import Dim
from surgery.rules.expression import (
    IN,
    OUT,
    STAR,
    Expression,
    Shape,
    number,
    operand,
    rebuild,
    walk,
)
from surgery.rules.limits import Depth
from surgery.rules.rows import Rows
from surgery.rules.shapes import Shapes
from surgery.rules.slices import take
from surgery.rules.trained import Trained
from surgery.rules.values import Declaration, HostModule, Value

Kind = Literal["linear", "module", "attention", "tokens"]
OPERANDS: dict[Kind, tuple[str, ...]] = {
    "linear": ("x", "W", "b"),
    "module": ("x", "residual", "norm"),
    "attention": ("q", "k", "v", "mask"),
    "tokens": ("positions", "memory"),
}
BATCH, SEQUENCE, LENGTH = Dim.named("*0"), Dim.named("*1"), Dim.named("*t")
"""Sizes that every forward has its own of: examples, tokens of each, keys of each."""
ATTENTION: dict[str, tuple[str, ...]] = {
    "o": ("*0", "query_heads", "*1", "values"),
    "q": ("*0", "query_heads", "*1", "keys"),
    "k": ("*0", "heads", "*t", "keys"),
    "v": ("*0", "heads", "*t", "values"),
}
"""The dims of the operands of an attention, and of its result.

Queries have heads of their own where several share the keys of one (Llama 3, Mistral, Falcon).
"""


@dataclass
class Notes:
    """What methods of one site leave behind, whichever operator they matched."""

    shapes: Shapes
    declarations: list[Declaration] = field(default_factory=list[Declaration])
    requirements: list[Requirement] = field(default_factory=list[Requirement])
    training: list[Trained] = field(default_factory=list[Trained])
    given: list[Expression] = field(default_factory=list[Expression])
    """Tensors handed to a method that is not known yet (a verb checked on its own)."""
    changed: bool = False
    child: str = ""
    """What the names of all params of the method begin with that is read."""
    depth: Depth = field(default_factory=Depth)


@dataclass
class State:
    """An operator while methods are applied to it. ``result`` is its value as a function of x."""

    kind: Kind
    origin: Expression
    """The operator as the current method found it."""
    result: Expression
    operands: dict[str, Expression | None]
    notes: Notes
    has_norm: bool = False
    named_dims: int | None = None
    """How many leading dims a rule named (`x[z, s, d]`: 2); None where none did."""
    grouped: bool = False
    """Whether the outputs read different inputs, as those of a grouped convolution do."""
    rebound: bool = False
    core: State | None = None
    """The softmax core within, where the operator is an attention."""
    base: Expression | None = None
    """The operator before any method; None for tokens."""

    @property
    def told_core(self) -> tuple[Expression, ...]:
        """The attention within, where methods have changed it."""
        core = self.core
        return () if core is None or core.result == core.base else (core.result,)

    def become(self, attention: Expression) -> None:
        """Let ``attention`` be what methods have made of this one."""
        self.result = attention
        inner = next(e for e in walk(attention) if e.op == "attend")
        self.operands |= zip(OPERANDS["attention"], inner.arguments, strict=True)

    @property
    def shapes(self) -> Shapes:
        return self.notes.shapes

    def rows(self, rows: Rows) -> State:
        """A slice of the outputs of a linear operator, as an operator of its own."""
        result = take(self.result, rows)
        weight, bias = self.operands["W"], self.operands["b"]
        operands = {
            "x": self.operands["x"],
            "W": weight and take(weight, rows),
            "b": bias and take(bias, rows),
            "residual": None,
        }
        base = self.base and take(self.base, rows)
        return State(
            self.kind, result, result, operands, self.notes, named_dims=self.named_dims, base=base
        )

    @property
    def pattern(self) -> Expression:
        """Something of the shape of the result, whatever methods made of this."""
        return self.origin if self.origin.varies or self.base is None else self.base

    def enter(self) -> tuple[State, ...]:
        """Begin the next method, which finds what stands as its operator."""
        states: tuple[State, ...] = (self, self.core) if self.core else (self,)
        for state in states:
            state.rebound, state.origin = False, state.result
        return states


def operator(
    kind: Kind,
    *,
    bias: bool = True,
    norm: bool = False,
    residual: bool = False,
    strict: bool = False,
    grouped: bool = False,
    core: bool = False,
    positions: bool = True,
    memory: bool = True,
    out: Dim = OUT,
    into: Dim = IN,
    names: Mapping[str, Dim] | None = None,
) -> State:
    """A fresh operator: W is [out, into], x is [*, into], the result [*, out].

    ``names`` are other names for dims of an attention.
    """
    notes = Notes(Shapes(strict=strict))
    operands: dict[str, Expression | None]
    if kind == "tokens":
        shape = (BATCH, SEQUENCE, out)
        operands = {
            name: operand(name, (BATCH, SEQUENCE)) if there else None
            for name, there in (("positions", positions), ("memory", memory))
        }
        result = Expression("tokens", tuple(o for o in operands.values() if o), (), shape)
        return State(kind, result, result, operands, notes, named_dims=2)
    x = operand("x", (STAR, into))
    operands = {"x": x}
    if kind == "linear":
        weight = operand("W", (out, into))
        offset = operand("b", (out,)) if bias else None
        operands |= {"W": weight, "b": offset}
        arguments = (x, weight, offset) if offset else (x, weight)
        result = Expression("linear", arguments, (), (STAR, out))
    else:
        result = Expression("base", (x,), (), (STAR, out))
    operands["residual"] = operand("residual", (STAR, out)) if residual else None
    state = State(kind, result, result, operands, notes, norm, grouped=grouped, base=result)
    if core:
        state.core = _attention(notes, names or {})
    return state


def _attention(notes: Notes, names: Mapping[str, Dim]) -> State:
    def shape(of: str) -> Shape:
        return tuple(names.get(n, Dim.named(n)) for n in ATTENTION[of])

    q, k, v = (operand(name, shape(name)) for name in "qkv")
    mask = operand("mask", (*q.shape[:3], k.shape[2]))
    result = Expression("attend", (q, k, v, mask), (), shape("o"))
    operands: dict[str, Expression | None] = {"q": q, "k": k, "v": v, "mask": mask}
    return State("attention", result, result, operands, notes, base=result)


def read_operand(state: State, target: str, span: Span) -> Value | None:
    if target == "y":
        return _told(state)
    if target == "norm":
        return HostModule("norm", state.has_norm)
    if target in ("W", "b"):
        found = effective(state, target, span)
        return found if found.number is None else number(found.number, span, found.shape)
    value = state.operands.get(target)
    return number(0, span, state.origin.shape) if value is None else value


def _told(state: State) -> Expression:
    """The result, as that of a module in which the attention is what methods have made of it."""
    core = state.told_core
    if not core:
        return state.result

    def change(e: Expression) -> Expression | None:
        return replace(e, arguments=(*e.arguments, *core)) if e.op == "base" else None

    return rebuild(state.result, change)


def effective(state: State, target: str, span: Span) -> Expression:
    """`W` or `b` with the effect of the methods already at this site in it."""
    found = merge(state.origin, state.grouped)
    if isinstance(found, NotAffine):
        raise error(
            "S402",
            f"this reads `{target}`, and what stands at this module has none: {found.reason}",
            span,
            found.span and Label(found.span, "not affine in the input"),
            help="put the method that reads the weight first",
        )
    return found.weight if target == "W" else found.bias
