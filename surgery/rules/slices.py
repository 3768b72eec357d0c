"""A slice of an operator's outputs in expressions: `rows(y)`, and `put(y, part)`.

`rows(y)` are some features of a value over all outputs (rows of a matrix, elements of a vector), and
`put(y, part)` is that value with them replaced. A method on a slice sees the rows as an operator of
its own; what it makes of them is put back.
"""

from __future__ import annotations

from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, Shape, is_leading, with_shape
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.rows import Rows


def rows_in(e: Expression) -> Rows:
    """The rows that a `rows` or `put` is about."""
    found = e.attribute("of")
    assert isinstance(found, Rows)
    return found


def take(e: Expression, rows: Rows) -> Expression:
    """`rows(e)`, past what was put into other rows of ``e``."""
    while e.op == "put" and (rows_in(e) == rows or rows.apart(rows_in(e))):
        if rows_in(e) == rows:
            return e.arguments[1]
        e = e.arguments[0]
    if e.op == "number":
        return with_shape(e, _shape(e, rows) if e.shape else ())
    return Expression("rows", (e,), (("of", rows),), _shape(e, rows))


def put(whole: Expression, part: Expression, rows: Rows) -> Expression:
    """``whole`` with ``part`` as its ``rows``; ``whole`` itself if it has them already."""
    if part in (take(whole, rows), push(whole, rows)):
        return whole
    if whole.op == "put" and rows_in(whole) == rows:
        whole = whole.arguments[0]
    shape = whole.shape or (Dim.of(rows.total),)
    if part.varies:
        shape = (*part.shape[:-1], shape[-1])
    return Expression("put", (whole, part), (("of", rows),), shape)


def push(e: Expression, rows: Rows) -> Expression:
    """`rows(e)` with the rows taken as far inside as they go: of operands and parameters.

    >>> from surgery.rules.expression import STAR, operand
    >>> from surgery.rules.rows import rows_of
    >>> W, x = operand("W", (Dim.of(6), Dim.of(4))), operand("x", (STAR, Dim.of(4)))
    >>> print(push(Expression("linear", (x, W), (), (STAR, Dim.of(6))), rows_of("q", 6, [0, 1])))
    linear(x, W[q])

    """
    found = take(e, rows)
    if found.op != "rows":
        return found
    e = found.arguments[0]
    by_row = _by_row(e)
    if by_row is None:
        return found
    arguments = tuple(
        push(a, rows) if inside else a for a, inside in zip(e.arguments, by_row, strict=True)
    )
    return Expression(e.op, arguments, e.attributes, _shape(e, rows), e.span)


def step(e: Expression) -> Expression | None:
    """A `rows(f(…))` with the rows taken of the arguments of f, or None if f is not by row."""
    inner, rows = e.arguments[0], rows_in(e)
    by_row = _by_row(inner)
    if by_row is None:
        return None
    arguments = tuple(
        take(a, rows) if inside else a for a, inside in zip(inner.arguments, by_row, strict=True)
    )
    return Expression(inner.op, arguments, inner.attributes, e.shape, e.span)


def _by_row(e: Expression) -> tuple[bool, ...] | None:
    """Which arguments of ``e`` have its rows as theirs; None if its rows come of no such thing."""
    primitive = PRIMITIVES.get(e.op)
    if primitive is None or not primitive.rows:
        return None
    if primitive.elementwise:
        return tuple(_lines_up(a, e) for a in e.arguments)
    if e.op == "matmul" and e.varies:
        # Of what flows, features stand last, and `matmul` has them from its other argument.
        return None
    return tuple(i in primitive.rows and bool(a.shape) for i, a in enumerate(e.arguments))


def _lines_up(argument: Expression, e: Expression) -> bool:
    """Whether an argument of something elementwise has a row for each of the result's."""
    last = e.varies or any(map(is_leading, e.shape))
    if not argument.shape or (not last and len(argument.shape) < len(e.shape)):
        return False
    axis = -1 if last else 0
    return argument.shape[axis] == e.shape[axis]


def _shape(e: Expression, rows: Rows) -> Shape:
    """The shape of `rows(e)`: features stand last in what flows, and first in what is held."""
    size = Dim.of(rows.size)
    last = e.varies or any(map(is_leading, e.shape))
    return (*e.shape[:-1], size) if last else (size, *e.shape[1:])
