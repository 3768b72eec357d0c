"""The merge, derived: the operator's result as an affine function of its input.

An expression is walked with two kinds of value: one known from tensors that do not depend on the
input, and a pair (M, c) that stands for x ↦ Mx + c. If the result is such a pair, M and c are the
merged weight and bias. If not, the first expression that is not affine is the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgery.language.source import Span
from surgery.rules.expression import Expression, number, walk
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.simplify import make


@dataclass(frozen=True)
class Map:
    """x ↦ Mx + c. ``matrix`` None is the identity; a ``diagonal`` one is the vector diag⁻¹(M)."""

    matrix: Expression | None
    offset: Expression
    diagonal: bool = False


@dataclass(frozen=True)
class NotAffine:
    """Why there is no merge: ``expression`` is the first that is not affine in the input."""

    expression: Expression
    reason: str

    @property
    def span(self) -> Span | None:
        return self.expression.span


@dataclass(frozen=True)
class Merge:
    """The merged weight [n, m] and bias [n] as expressions of what the site holds."""

    weight: Expression
    bias: Expression


Value = Expression | Map


class _NotAffineError(Exception):
    def __init__(self, found: NotAffine):
        self.found = found


def merge(result: Expression, grouped: bool = False) -> Merge | NotAffine:
    """Derive weight and bias of ``result`` as an affine function of the operand ``x``.

    With ``grouped`` outputs that read different inputs, no matrix over one `x` mixes them.
    """
    mixed = next((e for e in walk(result) if grouped and _mixes(e)), None)
    if mixed is not None:
        return NotAffine(mixed, "mixes outputs of groups that read different inputs")
    try:
        value = _walk(result, {})
    except _NotAffineError as stop:
        return stop.found
    if isinstance(value, Map) and value.matrix is not None and not value.diagonal:
        return Merge(value.matrix, value.offset)
    return NotAffine(result, "does not pass its input through the weight")


def _mixes(e: Expression) -> bool:
    return e.op in ("linear", "matmul") and e.varies and e.arguments[0].is_output


def _walk(e: Expression, memo: dict[Expression, Value]) -> Value:
    if e not in memo:
        memo[e] = _value(e, [_walk(a, memo) for a in e.arguments])
    return memo[e]


def _value(e: Expression, arguments: list[Value]) -> Value:
    if e.op == "operand" and e.name == "x":
        return Map(None, number(0))
    if e.op == "base":
        raise _NotAffineError(
            NotAffine(e, "the module is no linear layer, so it has no one weight")
        )
    if e.op == "operand" and e.varies:
        raise _NotAffineError(NotAffine(e, f"`{e.name}` comes from elsewhere in the model"))
    if not any(isinstance(a, Map) for a in arguments):
        return e
    if e.op in ("rows", "put"):
        return _slice(e, arguments)
    primitive = PRIMITIVES.get(e.op)
    match primitive.affine if primitive else "none":
        case "linear":
            return _linear(e, arguments)
        case "add":
            return _add(e, arguments[0], arguments[1])
        case "scale":
            return _scale(e, arguments)
        case "divide" if isinstance(arguments[1], Expression):
            return _scale(
                e, [arguments[0], make("divide", (number(1), arguments[1]), arguments[1].shape)]
            )
        case "negate":
            return _scale(e, [arguments[0], number(-1)])
        case "same" if isinstance(arguments[0], Map):
            return arguments[0]
        case "matmul" if isinstance(arguments[1], Expression):
            right = arguments[1]
            return _linear(e, [arguments[0], make("transpose", (right,), right.shape[::-1])])
        case _:
            raise _NotAffineError(NotAffine(e, f"`{e.op}` of a value that depends on the input"))


def _slice(e: Expression, arguments: list[Value]) -> Map:
    """Features of a map are its rows; only a map with a matrix of outputs has any."""
    maps = [a for a in arguments if isinstance(a, Map) and a.matrix is not None and not a.diagonal]
    if len(maps) < len(arguments):
        raise _NotAffineError(NotAffine(e, "does not pass its input through the weight"))
    matrices = tuple(m.matrix for m in maps if m.matrix is not None)
    matrix = make(e.op, matrices, attributes=e.attributes)
    return Map(matrix, make(e.op, tuple(m.offset for m in maps), attributes=e.attributes))


def _linear(e: Expression, arguments: list[Value]) -> Map:
    x, weight = arguments[0], arguments[1]
    bias = arguments[2] if len(arguments) == 3 else number(0)
    if not isinstance(x, Map) or not isinstance(weight, Expression) or isinstance(bias, Map):
        raise _NotAffineError(NotAffine(e, "a weight that depends on the input"))
    if x.matrix is None:
        matrix = weight
    elif x.diagonal:
        matrix = make("multiply", (weight, x.matrix), weight.shape)
    else:
        matrix = make("matmul", (weight, x.matrix), (weight.shape[0], x.matrix.shape[1]))
    carried = make("linear", (x.offset, weight), weight.shape[:1])
    return Map(matrix, make("add", (carried, bias), weight.shape[:1]))


def _scale(e: Expression, arguments: list[Value]) -> Map:
    x, factor = sorted(arguments, key=lambda a: isinstance(a, Expression))
    if not isinstance(x, Map) or not isinstance(factor, Expression):
        raise _NotAffineError(NotAffine(e, "a product of two values that depend on the input"))
    if len(factor.shape) > 1:
        raise _NotAffineError(NotAffine(e, f"`{factor}` scales more than the features"))
    offset = make("multiply", (x.offset, factor), e.shape[-1:])
    if x.matrix is None:
        return Map(factor, offset, diagonal=True)
    if x.diagonal:
        return Map(make("multiply", (x.matrix, factor), e.shape[-1:]), offset, diagonal=True)
    if factor.shape:
        return Map(make("scale_rows", (x.matrix, factor), x.matrix.shape), offset)
    return Map(make("multiply", (x.matrix, factor), x.matrix.shape), offset)


def _dense(x: Map, like: Expression) -> Expression:
    if x.matrix is not None and not x.diagonal:
        return x.matrix
    size = like.shape[-1]
    eye = Expression("eye", (), (("size", size),), (size, size))
    return make("scale_rows", (eye, x.matrix), eye.shape) if x.matrix is not None else eye


def _add(e: Expression, left: Value, right: Value) -> Map:
    if isinstance(right, Map) and e.op == "subtract":
        right = _scale(e, [right, number(-1)])
    elif isinstance(right, Expression) and e.op == "subtract":
        right = make("negate", (right,), right.shape)
    if isinstance(left, Map) and isinstance(right, Map):
        offset = make("add", (left.offset, right.offset), e.shape[-1:])
        if left.diagonal and right.diagonal and left.matrix and right.matrix:
            return Map(make("add", (left.matrix, right.matrix), e.shape[-1:]), offset, True)
        a, b = _dense(left, e), _dense(right, e)
        return Map(make("add", (a, b), a.shape), offset)
    known, x = (left, right) if isinstance(right, Map) else (right, left)
    if not isinstance(x, Map) or not isinstance(known, Expression) or len(known.shape) > 1:
        raise _NotAffineError(NotAffine(e, "an offset that is not a vector over the features"))
    return Map(x.matrix, make("add", (x.offset, known), e.shape[-1:]), x.diagonal)
