"""Shapes and costs of the primitives that have rules of their own."""

from __future__ import annotations

from dataclasses import replace

from surgery.language.diagnostics import error
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression, Shape
from surgery.rules.primitive import Arguments, Attributes, ShapeRule, elements
from surgery.rules.shapes import ONE, Shapes, mismatch, show_shape


def same(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    return arguments[0].shape


def broadcast(what: str) -> ShapeRule:
    def rule(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
        return shapes.broadcast(arguments[0], arguments[1], what, span)

    return rule


def of_linear(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    x, weight = arguments[:2]
    _need_rank("linear", weight, 2, span)
    rows, columns = weight.shape
    if not x.shape or not shapes.equal(x.shape[-1], columns, "linear", span):
        raise mismatch("linear", x, weight, span)
    if len(arguments) == 3 and not shapes.fits(arguments[2].shape, (rows,), "linear", span):
        raise mismatch("the bias of linear", weight, arguments[2], span)
    return (*x.shape[:-1], shapes.resolve(rows))


def of_matmul(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    left, right = arguments
    rank = len(right.shape)
    if rank < 2 or STAR in right.shape:
        _need_rank("@", right, 2, span)
    inner, columns = right.shape[-2:]
    fits = len(left.shape) > 1 and shapes.equal(left.shape[-1], inner, "@", span)
    if not fits or (rank > 2 and STAR in left.shape):
        raise mismatch("@", left, right, span)
    beside = left.shape[:-2]
    if rank > 2:
        ends = [replace(a, shape=a.shape[:-2]) for a in arguments]
        beside = shapes.broadcast(ends[0], ends[1], "@", span)
    return (*beside, *left.shape[-2:-1], columns)


def of_transpose(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    _need_rank("transpose", arguments[0], 2, span)
    return arguments[0].shape[::-1]


def of_row_norm(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    _need_rank("row_norm", arguments[0], 2, span)
    return arguments[0].shape[:1]


def of_kron(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    for argument in arguments:
        _need_rank("kron", argument, 2, span)
    (a, b), (c, d) = arguments[0].shape, arguments[1].shape
    return (a * c, b * d)


def of_frobenius(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    return ()


def of_scale_rows(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    matrix, factors = arguments
    _need_rank("scale_rows", matrix, 2, span)
    if not shapes.fits(factors.shape, matrix.shape[:1], "scale_rows", span):
        raise mismatch("scale_rows", matrix, factors, span)
    return matrix.shape


def of_dropout(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    known = arguments[0].number
    if known is not None and known.number != 0:
        raise error(
            "S212", f"dropout takes a tensor, and this is {arguments[0]} for all of it", span
        )
    return arguments[0].shape


def _need_rank(what: str, value: Expression, rank: int, span: Span | None) -> None:
    if len(value.shape) != rank or STAR in value.shape:
        raise error(
            "S212", f"{what} takes a matrix, and `{value}` is {show_shape(value.shape)}", span
        )


def reduced(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    """A reduced dim stays, as 1, so that the result still lines up with its argument."""
    shape = arguments[0].shape
    position = len(shape) + axis
    return (*shape[:position], ONE, *shape[position + 1 :])


def of_cat(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    """The shape of two tensors joined along ``axis``; other dims broadcast."""
    left, right = (tuple(shapes.resolve(d) for d in a.shape) for a in arguments)
    rank = max(len(left), len(right))
    if rank < -axis or min(len(left), len(right)) < -axis or STAR in (*left, *right):
        raise mismatch("cat", arguments[0], arguments[1], span)
    result: list[Dim] = []
    for position in range(-rank, 0):
        a, b = (s[position] if len(s) >= -position else ONE for s in (left, right))
        if position == axis:
            result.append(a + b)
        elif a == ONE or b == ONE or shapes.equal(a, b, "cat", span):
            result.append(b if a == ONE else a)
        else:
            raise mismatch("cat", arguments[0], arguments[1], span)
    return tuple(result)


def _number(value: Expression) -> Dim:
    assert value.number is not None  # who reads a call has asked the row's `numbers`
    return value.number


def of_reveal(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    mask, count = arguments
    return (*mask.shape[:-1], mask.shape[-1] + _number(count))


def of_align(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    value, like = arguments
    if len(value.shape) < 2:
        return value.shape
    if like.number is not None:
        raise error("S212", f"align needs a tensor to line up with, and this is {like}", span)
    if any(d != ONE for d in value.shape[1:]):
        raise error(
            "S212",
            f"align takes one number an example, and `{value}` is {show_shape(value.shape)}",
            span,
        )
    return (value.shape[0], *(ONE for _ in like.shape[1:]))


def aligned(_: object, value: Expression, like: Expression) -> Expression | None:
    """``value`` where aligning it would do nothing: one number, or a vector of examples."""
    return value if value.number is not None or len(value.shape) < 2 else None


def of_split_heads(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    value, count = arguments
    _need_rank("split_heads", value, 2, span)
    heads = _number(count)
    return (heads, value.shape[0], value.shape[1] / heads)


def of_bilstm(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    x, into, hidden, *biases = arguments
    _need_rank("bilstm", x, 2, span)
    two = Dim.of(2)
    if len(hidden.shape) != 3:
        raise mismatch("bilstm", into, hidden, span)
    width = shapes.resolve(hidden.shape[2])
    gates = width * 4
    fits = (
        shapes.fits(into.shape, (two, gates, x.shape[1]), "bilstm", span)
        and shapes.fits(hidden.shape, (two, gates, width), "bilstm", span)
        and all(shapes.fits(b.shape, (two, gates), "bilstm", span) for b in biases)
    )
    if not fits:
        raise mismatch("bilstm", into, hidden, span)
    return (x.shape[0], width * 2)


def of_place(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    return arguments[1].shape


def linear_cost(e: Expression) -> Dim:
    rows, columns = e.arguments[1].shape
    return rows * columns * 2


def matmul_cost(e: Expression) -> Dim:
    rows, inner = (Dim.of(1), *e.arguments[0].shape)[-2:]
    rank = len(e.arguments[1].shape)
    if rank > 2:
        return elements(e) * inner * 2
    leading = rows if rows != STAR else Dim.of(1)
    return leading * inner * e.arguments[1].shape[-1] * 2


def row_norm_cost(e: Expression) -> Dim:
    return elements(e.arguments[0])


def bilstm_cost(e: Expression) -> Dim:
    into, hidden = e.arguments[1:3]
    return e.shape[0] * into.shape[1] * (into.shape[2] + hidden.shape[2]) * 4


def of_inverse(shapes: Shapes, arguments: Arguments, span: Span | None, axis: int) -> Shape:
    (matrix,) = arguments
    rows, columns = matrix.shape[-2:] if len(matrix.shape) > 1 else (STAR, STAR)
    if STAR in matrix.shape or rows == STAR or not shapes.equal(rows, columns, "inverse", span):
        raise error(
            "S212",
            f"inverse takes square matrices, and `{matrix}` is {show_shape(matrix.shape)}",
            span,
        )
    return matrix.shape


def of_eye(_: object, matrix: Expression) -> Expression | None:
    """The inverse of the identity."""
    return matrix if matrix.op == "eye" else None


def beside_eye(_: object, left: Expression, right: Expression) -> Expression | None:
    """A product with the identity."""
    return left if right.op == "eye" else right if left.op == "eye" else None


def fft_cost(e: Expression) -> Dim:
    """Ten operations an element, for the logarithm that there is no polynomial for."""
    return elements(e) * 10


def decomposition_cost(e: Expression) -> Dim:
    matrix, rank = e.arguments
    return elements(matrix) * _number(rank) * 4


def inverse_cost(e: Expression) -> Dim:
    return elements(e) * e.shape[-1] * 2


def dot_cost(e: Expression) -> Dim:
    """A multiplication and an addition for each combination of places."""
    equation = str(e.attribute("_equation"))
    sizes: dict[str, Dim] = {}
    for argument, letters in zip(e.arguments, equation.split("->")[0].split(","), strict=True):
        own = letters.removeprefix("...")
        if own:
            sizes |= zip(own, argument.shape[-len(own) :], strict=True)
    total = Dim.of(2)
    for size in sizes.values():
        total = total * size
    return total


def of_ones_or_eye(
    attributes: Attributes, left: Expression, right: Expression
) -> Expression | None:
    """A product with ones, or a sum with the identity, which calls one dim by another name."""
    equation = str(dict(attributes)["_equation"])
    given, made = equation.split("->")
    before, matrix = (side.removeprefix("...") for side in given.split(","))
    if (
        right.number is not None
        and before == made.removeprefix("...")
        and not {*matrix} - {*before}
    ):
        return left if right.number.number == 1 else None
    if right.op != "eye":
        return None
    old, new = matrix[-2:]
    beside = matrix[:-2]
    renamed = all(c in before for c in beside) and (
        before.replace(old, new) == made.removeprefix("...")
        or before.replace(new, old) == made.removeprefix("...")
    )
    return left if renamed else None
