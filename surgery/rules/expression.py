"""The intermediate representation: typed tensor expressions.

A rule, given its arguments, becomes one expression for the operator's result. Everything that is
derived (identity, merge, cost, the graph that runs) is a walk over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.rows import Rows

STAR = Dim.named("*")
OUT, IN = Dim.named("n"), Dim.named("m")
"""The features that an operator of a site gives and takes."""
SITES = "sites()"
"""The name of how many sites a method is at, and the axis of what is taken over all of them."""
Shape = tuple[Dim, ...]


def is_leading(dim: Dim) -> bool:
    """Whether a dim is one that every forward has its own of: `*`, a batch or a length."""
    return any(name.startswith("*") for name in dim.names())


def features_of(shape: Shape) -> Shape:
    """The dims behind those that every forward has its own of."""
    leading = max((i for i, dim in enumerate(shape, 1) if is_leading(dim)), default=0)
    return shape[leading:]


Attribute = Dim | Rows | str | bool | int


@dataclass(frozen=True)
class Expression:
    """``op`` applied to ``arguments``; ``attributes`` are what is no tensor (an axis, a rate).

    ``base``, ``attend`` and ``tokens`` are a module, an attention and an embedded sequence as the
    model has them; ``spread`` is a value repeated to the shape of another, ``expand`` to sizes,
    ``vector`` one without leading dims of 1, ``eye`` the identity matrix, ``drawn`` a state that is
    drawn for each step of training, with what it is in evaluation. Leaves are ``operand`` (of the matched operator), ``param`` (a tensor of the rule) and
    ``number``. Equality ignores spans: equal expressions compute equal values.
    """

    op: str
    arguments: tuple[Expression, ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    shape: Shape = field(default=(), compare=False)
    span: Span | None = field(default=None, compare=False, repr=False)

    @cached_property
    def _hash(self) -> int:
        return hash((self.op, self.arguments, self.attributes))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Expression) or self._hash != other._hash:
            return False
        return (self.op, self.attributes, self.arguments) == (
            other.op,
            other.attributes,
            other.arguments,
        )

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many parts this has, written out, and how deep they nest."""
        inner = [a.extent for a in self.arguments]
        return 1 + sum(size for size, _ in inner), 1 + max((deep for _, deep in inner), default=0)

    def attribute(self, name: str) -> Attribute:
        return dict(self.attributes)[name]

    @property
    def name(self) -> str:
        """The name of an operand or param leaf, or of a block or module that is called."""
        return str(self.attribute("name"))

    @property
    def number(self) -> Dim | None:
        """The value of a ``number`` leaf, else None."""
        value = self.attribute("value") if self.op == "number" else None
        return value if isinstance(value, Dim) else None

    @cached_property
    def leaves(self) -> frozenset[Expression]:
        """The operand and param leaves below (or this one)."""
        if self.op in ("operand", "param"):
            return frozenset((self,))
        below: frozenset[Expression] = frozenset()
        for argument in self.arguments:
            below |= argument.leaves
        return below

    def reads(self, name: str) -> bool:
        """Whether the operand ``name`` occurs below."""
        return any(leaf.op == "operand" and leaf.name == name for leaf in self.leaves)

    @cached_property
    def varies(self) -> bool:
        """Whether the value depends on what flows through the model, not on tensors it holds."""
        if self.op in ("base", "tokens"):
            return True
        if self.op == "operand":
            return self.name not in ("W", "b")
        return any(a.varies for a in self.arguments)

    def __str__(self) -> str:
        return show(self)


def operand(name: str, shape: Shape, span: Span | None = None) -> Expression:
    return Expression("operand", (), (("name", name),), shape, span)


def param(name: str, shape: Shape, span: Span | None = None) -> Expression:
    return Expression("param", (), (("name", name),), shape, span)


def number(value: Dim | int | float, span: Span | None = None, shape: Shape = ()) -> Expression:
    """A number, or a tensor of ``shape`` that is this number everywhere."""
    attributes = (("value", Dim.of(value)), *_sizes(shape))
    return Expression("number", (), attributes, shape, span)


def with_shape(e: Expression, shape: Shape) -> Expression:
    """A number as a tensor of another shape."""
    assert e.number is not None
    return number(e.number, e.span, shape)


def _sizes(shape: Shape) -> tuple[tuple[str, Attribute], ...]:
    """A shape as attributes, of those operations that nothing else tells it of."""
    return tuple((f"size{i}", dim) for i, dim in enumerate(shape))


def eye(size: Dim, like: Expression | None = None, beside: Shape = ()) -> Expression:
    """The identity matrix, for each place of the dims ``beside``, in the dtype of ``like``.

    That is the weight if nothing else is given.
    """
    attributes = (("size", size), *_sizes(beside))
    return Expression("eye", (like or operand("W", (OUT, IN)),), attributes, (*beside, size, size))


def expanded(e: Expression, shape: Shape) -> Expression:
    """A tensor of parameters, or a number, as one of ``shape``; a number in the weight's dtype."""
    return Expression("expand", (e, operand("W", (OUT, IN))), _sizes(shape), shape, e.span)


def is_number(expression: Expression, value: float) -> bool:
    known = expression.number
    return known is not None and known.number == value


def rebuild(
    expression: Expression,
    change: Callable[[Expression], Expression | None],
    build: Callable[[Expression, tuple[Expression, ...]], Expression] | None = None,
    _memo: dict[Expression, Expression] | None = None,
) -> Expression:
    """Replace, from the top down, every subexpression for which ``change`` gives another.

    ``build(old, arguments)`` makes the node again where arguments changed; the default keeps its
    op, attributes, shape and span.
    """
    memo: dict[Expression, Expression] = {} if _memo is None else _memo
    if expression in memo:
        return memo[expression]
    result = change(expression)
    if result is None:
        arguments = tuple(rebuild(a, change, build, memo) for a in expression.arguments)
        if build:
            result = build(expression, arguments)
        elif all(a is b for a, b in zip(arguments, expression.arguments, strict=True)):
            result = expression
        else:
            result = Expression(
                expression.op, arguments, expression.attributes, expression.shape, expression.span
            )
    memo[expression] = result
    return result


def walk(expression: Expression) -> Iterator[Expression]:
    """Every distinct subexpression once, arguments before what uses them."""
    seen: set[Expression] = set()

    def visit(e: Expression) -> Iterator[Expression]:
        if e in seen:
            return
        seen.add(e)
        for a in e.arguments:
            yield from visit(a)
        yield e

    yield from visit(expression)


COMPARISONS = {
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "not_equal",
}
OPERATORS = {
    "+": "add",
    "-": "subtract",
    "*": "multiply",
    "/": "divide",
    "@": "matmul",
    **COMPARISONS,
}
"""What the signs of the grammar stand for between tensors."""
SIGNS = {op: sign for sign, op in OPERATORS.items()}


_LEFT = ("subtract", "divide")
"""Of these, a second argument of the same kind stands in parentheses."""
_WRITTEN = {"exchange": "transpose"}
"""What is written by another name."""


def show(expression: Expression) -> str:
    """The expression as a rule would write it."""
    e = expression
    if e.op in ("operand", "param"):
        return e.name
    if e.op == "number":
        return str(e.attribute("value"))
    parts = [show(a) for a in e.arguments]
    if e.op in SIGNS:
        shown = [
            f"({p})" if a.op in SIGNS and (a.op != e.op or (i and e.op in _LEFT)) else p
            for i, (a, p) in enumerate(zip(e.arguments, parts, strict=True))
        ]
        return f" {SIGNS[e.op]} ".join(shown)
    if e.op == "negate":
        return f"-{parts[0]}"
    if e.op == "rows":
        (inner,) = e.arguments
        return f"{f'({parts[0]})' if inner.op in SIGNS else parts[0]}[{e.attribute('of')}]"
    if e.op in ("block", "host"):
        return f"{e.name}({', '.join(parts)})"
    if e.op in ("expand", "spread", "vector"):
        return parts[0]
    if e.op == "drawn":
        return parts[0]
    size = dict(e.attributes).get("size")
    if size is not None:
        return f"{e.op}({size})"
    extra = [
        str(v) if k == "dims" else f"{k} = {v}"
        for k, v in e.attributes
        if k != "axis" and not k.startswith("_")
    ]
    part = dict(e.attributes).get("_part")
    which = "" if part is None else f"[{part}]"
    return f"{_WRITTEN.get(e.op, e.op)}({', '.join(parts + extra)}){which}"
