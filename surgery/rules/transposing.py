"""Transposes of matrices as a reader would write them: `B @ A` for what maps x by A, then by B."""

from __future__ import annotations

from surgery.rules.expression import Expression, number, with_shape
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import ONE
from surgery.rules.simplify import make


def transposed(e: Expression) -> Expression:
    """The transpose of a matrix, written without one where that can be.

    >>> from surgery.rules.dims import Dim
    >>> from surgery.rules.expression import param
    >>> one = Dim.of(1)
    >>> A, B = param("A", (one, one)), param("B", (one, one))
    >>> print(transposed(Expression("linear", (transposed(A), B), (), (one, one))))
    B @ A

    """
    turned = e.shape[::-1]
    if e.number is not None:
        return with_shape(e, turned)
    match e.op:
        case "transpose":
            return e.arguments[0]
        case "eye":
            return e
        case "linear" if len(e.arguments) == 2:
            return _product(e.arguments[1], e.arguments[0])
        case "multiply" | "divide" if _is_matrix(e.arguments[0]):
            return _scaled(e)
        case _:
            primitive = PRIMITIVES.get(e.op)
            sums = primitive is not None and primitive.elementwise and primitive.is_additive
            if sums and all(map(_is_matrix, e.arguments)):
                return make(e.op, tuple(map(transposed, e.arguments)), turned, span=e.span)
            return make("transpose", (e,), turned, span=e.span)


def _is_matrix(e: Expression) -> bool:
    return len(e.shape) == 2


def _product(matrix: Expression, images: Expression) -> Expression:
    """``matrix`` @ the transpose of ``images``."""
    if images.op == "eye":
        return matrix
    diagonal = _diagonal(images)
    if diagonal is not None:
        return make("multiply", (matrix, diagonal), matrix.shape)
    if images.op in ("add", "subtract") and any(_is_plain(a) for a in images.arguments):
        parts = tuple(_product(matrix, a) for a in images.arguments)
        return make(images.op, parts, (matrix.shape[0], images.shape[0]))
    return make("matmul", (matrix, transposed(images)), (matrix.shape[0], images.shape[0]))


def _is_plain(images: Expression) -> bool:
    return images.op == "eye" or _diagonal(images) is not None


def _diagonal(images: Expression) -> Expression | None:
    """The vector, or the number, that a multiple of the untouched input is scaled by."""
    if images.op == "multiply" and images.arguments[0].op == "eye":
        return images.arguments[1]
    if images.op == "negate" and images.arguments[0].op == "eye":
        return number(-1)
    return None


def _scaled(e: Expression) -> Expression:
    """Columns scaled, so rows of the transpose."""
    matrix, factor = e.arguments
    inner, turned = transposed(matrix), e.shape[::-1]
    if _is_matrix(factor):
        return make(e.op, (inner, transposed(factor)), turned, span=e.span)
    if not factor.shape or factor.number is not None or factor.shape[-1] == ONE:
        return make(e.op, (inner, factor), turned, span=e.span)
    if e.op == "divide":
        factor = make("divide", (number(1), factor), factor.shape)
    return make("scale_rows", (inner, factor), turned, span=e.span)
