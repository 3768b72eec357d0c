"""Algebra that holds for every value: 0·e = 0, e + 0 = e, e / e = 1, dropout at rate 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import (
    STAR,
    Attribute,
    Expression,
    Shape,
    eye,
    is_leading,
    is_number,
    number,
    rebuild,
    with_shape,
)
from surgery.rules.primitive import Primitive
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.rows import Rows
from surgery.rules.shapes import ONE
from surgery.rules.slices import push, put, rows_in, take

Attributes = tuple[tuple[str, Attribute], ...]


def make(
    op: str,
    arguments: tuple[Expression, ...],
    shape: Shape = (),
    attributes: Attributes = (),
    span: Span | None = None,
) -> Expression:
    """Build ``op(arguments)`` in its simplest equal form."""
    if op in ("rows", "put"):
        (_, rows) = attributes[0]
        assert isinstance(rows, Rows)
        if op == "rows":
            return take(arguments[0], rows)
        return put(arguments[0], arguments[1], rows)
    primitive = PRIMITIVES.get(op)
    known = primitive and _of_numbers(primitive, arguments)
    if known is not None:
        return number(known, span, shape)
    short = _shortcut(op, primitive, arguments, shape, attributes)
    _record(op, arguments, short, span)
    if short is not None and short.op == "eye" and short.shape != shape:
        short = _eyes(short, shape)
    if short is not None and short.number is not None:
        return short if short.shape == shape else with_shape(short, shape)
    if short is None or not _stands_for(short, shape):
        return Expression(op, arguments, attributes, shape, span)
    return short


def _eyes(short: Expression, shape: Shape) -> Expression | None:
    """An identity matrix as often as ``shape`` has it; None if it would be repeated otherwise."""
    size = short.shape[-1]
    if len(shape) < 2 or not (shape[-1] == shape[-2] == size):
        return None
    return eye(size, short.arguments[0], shape[:-2])


def _of_numbers(primitive: Primitive, arguments: tuple[Expression, ...]) -> Dim | None:
    """The value of a function of numbers; a division by zero is left for the site to name."""
    numbers = [a.number for a in arguments if a.number is not None]
    if primitive.of_numbers is None or len(numbers) < len(arguments):
        return None
    if any(not numbers[i].terms for i in primitive.nonzero):
        return None
    return primitive.of_numbers(*numbers)


@dataclass(frozen=True)
class Dropped:
    """What a shorter form does not read any more, and why it is equal."""

    lost: frozenset[Expression]
    reason: str
    span: Span | None


_RECORD: ContextVar[list[Dropped] | None] = ContextVar("dropped", default=None)


@contextmanager
def recording() -> Generator[list[Dropped]]:
    """Collect what is dropped inside."""
    found: list[Dropped] = []
    token = _RECORD.set(found)
    try:
        yield found
    finally:
        _RECORD.reset(token)


def _record(
    op: str, arguments: tuple[Expression, ...], short: Expression | None, span: Span | None
) -> None:
    record = _RECORD.get()
    if record is None or short is None:
        return
    lost = frozenset[Expression]().union(*(a.leaves for a in arguments)) - short.leaves
    if not lost:
        return
    match op:
        case "divide" if is_number(short, 1):
            reason = "a value divided by itself is 1"
        case "add" | "subtract" | "negate":
            reason = "a value minus itself is 0"
        case _:
            zeros = [a for a in arguments if is_number(a, 0)]
            text = zeros[0].span.text if zeros and zeros[0].span else "0"
            reason = f"`{text}` is 0 here, and so is its product" if zeros else f"`{op}` drops it"
    record.append(Dropped(lost, reason, span))


def combined(e: Expression) -> Expression:
    """A sum with equal terms put together, where some of them cancel."""
    if e.op not in ("add", "subtract", "negate"):
        return e
    terms = _terms(e)
    if all(c.terms for c in terms.values()):
        return e
    left = [
        t if c == Dim.of(1) else make("multiply", (number(c), t), t.shape)
        for t, c in terms.items()
        if c.terms
    ]
    total = number(0, e.span, e.shape)
    for term in left:
        total = make("add", (total, term), e.shape, span=e.span)
    _record("add", (e,), total, e.span)
    return total


def _terms(e: Expression) -> dict[Expression, Dim]:
    """A sum as its terms, each with a number that it is multiplied by."""
    found: dict[Expression, Dim] = {}
    if e.op in ("add", "subtract"):
        for sign, a in zip((1, -1 if e.op == "subtract" else 1), e.arguments, strict=True):
            for term, c in _terms(a).items():
                found[term] = found.get(term, Dim.of(0)) + c * sign
        return found
    core, factor = _scaled(e)
    if core.op in ("add", "subtract"):
        return {term: c * factor for term, c in _terms(core).items()}
    return {core: factor}


def _scaled(e: Expression) -> tuple[Expression, Dim]:
    """``e`` as something times a number; products in one order."""
    if e.op == "negate":
        core, factor = _scaled(e.arguments[0])
        return core, factor * -1
    if e.op == "multiply":
        (a, s), (b, t) = map(_scaled, e.arguments)
        for one, other in ((a, b), (b, a)):
            if one.number is not None:
                return other, s * t * one.number
        ordered = tuple(sorted((a, b), key=str))
        return Expression(e.op, ordered, (), e.shape, e.span), s * t
    if e.op in ("linear", "matmul") and len(e.arguments) == 2:
        (a, s), (b, t) = map(_scaled, e.arguments)
        return Expression(e.op, (a, b), (), e.shape, e.span), s * t
    return e, Dim.of(1)


def _stands_for(short: Expression, shape: Shape) -> bool:
    """Whether ``short`` needs no broadcasting to be of ``shape``; leading dims may have no names."""
    own = short.shape
    if not short.varies or STAR in (*own[:1], *shape[:1]):
        shape = tuple(d for d in shape if not is_leading(d))
        own = tuple(d for d in own if not is_leading(d)) if short.varies else own
    pairs = zip(own, shape, strict=False)
    return not shape or (len(own) == len(shape) and all(a != ONE or b == ONE for a, b in pairs))


def _shortcut(
    op: str,
    primitive: Primitive | None,
    arguments: tuple[Expression, ...],
    shape: Shape,
    attributes: Attributes,
) -> Expression | None:
    zero = [is_number(a, 0) for a in arguments]
    if op == "linear" and len(arguments) == 3:
        if not arguments[0].varies and (zero[0] or zero[1]):
            return arguments[2]
        return make("linear", arguments[:2], shape) if zero[2] else None
    found = primitive and _by_row(primitive, arguments, attributes)
    if found:
        return found
    match op, arguments:
        case "subtract", (a, b) if zero[0]:
            return make("negate", (b,), b.shape)
        case "subtract", (a, b) if a.op == "add" and b in a.arguments:
            return a.arguments[1 - a.arguments.index(b)]
        case "spread", (x, like) if x.varies and x.shape == like.shape:
            return x
        case _:
            return None


def _by_row(
    primitive: Primitive, arguments: tuple[Expression, ...], attributes: Attributes
) -> Expression | None:
    """What the row of a primitive says of these arguments."""
    first = arguments[0]
    if primitive.shorter is not None and (shorter := primitive.shorter(attributes, *arguments)):
        return shorter
    if primitive.undoes and first.op == primitive.undoes:
        sizes = [[(k, v) for k, v in of if k != "dims"] for of in (attributes, first.attributes)]
        return first.arguments[0] if sizes[0] == sizes[1] else None
    if any(is_number(arguments[i], 0) for i in primitive.zeros):
        return number(0)
    if primitive.axis and first.number is not None:
        return _of_constant(primitive, first, first.number, attributes)
    for position, value in primitive.neutral:
        if is_number(arguments[position], value):
            return arguments[0 if position else 1]
    if primitive.of_equals is not None and first == arguments[1]:
        return number(primitive.of_equals)
    # `identity`: an activation that is left out. Dropout acts in training, detach on gradients.
    if primitive.inference and not (primitive.random or primitive.detaches):
        return first
    return first if primitive.idempotent and first.op == primitive.name else None


def _of_constant(
    primitive: Primitive, e: Expression, value: Dim, attributes: Attributes
) -> Expression | None:
    """What is taken over a dim of a tensor that is one number everywhere."""
    axis = dict(attributes).get("axis")
    if primitive.of_constant is None or not isinstance(axis, int):
        return None
    # Of a dim that is not known the result may not depend.
    size = e.shape[axis] if len(e.shape) >= -axis else STAR
    found = primitive.of_constant(value, size)
    return None if is_leading(found) else number(found, e.span, e.shape)


def substitute(expression: Expression, values: Mapping[Expression, Expression]) -> Expression:
    """Replace subexpressions and simplify what changed."""

    def build(old: Expression, arguments: tuple[Expression, ...]) -> Expression:
        if all(a is b for a, b in zip(arguments, old.arguments, strict=True)):
            return old
        return make(old.op, arguments, old.shape, old.attributes, old.span)

    return rebuild(expression, values.get, build)


def value_of(expression: Expression) -> Expression:
    """The expression without what changes no value at inference: dropout and detach."""

    def build(old: Expression, arguments: tuple[Expression, ...]) -> Expression:
        primitive = PRIMITIVES.get(old.op)
        if primitive and primitive.inference:
            return arguments[0]
        if old.op == "linear" and len(arguments) == 3:
            product = make("linear", arguments[:2], old.shape)
            return make("add", (product, arguments[2]), old.shape)
        if old.op == "rows":
            return push(arguments[0], rows_in(old))
        if old.op == "put":
            return _in_order(arguments[0], arguments[1], rows_in(old))
        return make(old.op, arguments, old.shape, old.attributes, old.span)

    return rebuild(expression, lambda _: None, build)


def _in_order(whole: Expression, part: Expression, rows: Rows) -> Expression:
    """`put(whole, part)`; of parts that do not overlap, the one with the first row stands inside."""
    if whole.op == "put" and rows.start < rows_in(whole).start and rows.apart(rows_in(whole)):
        inner, other = whole.arguments
        return put(_in_order(inner, part, rows), other, rows_in(whole))
    return put(whole, part, rows)


def summands(expression: Expression) -> Counter[Expression]:
    """The terms of a sum, regardless of order and grouping."""
    if expression.op == "add":
        return summands(expression.arguments[0]) + summands(expression.arguments[1])
    return Counter((expression,))


def same_value(left: Expression, right: Expression) -> bool:
    """Whether two expressions are equal by the algebra known here (never wrongly yes)."""
    return summands(value_of(left)) == summands(value_of(right))
