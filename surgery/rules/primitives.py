"""The primitives of the rule language, one entry each: shape, torch function, algebra, cost.

Torch functions are named, not imported: reading and checking rules needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from surgery.language.diagnostics import error
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression, Shape
from surgery.rules.shapes import ONE, Shapes, mismatch, show_shape

Arguments = tuple[Expression, ...]
ShapeRule = Callable[[Shapes, Arguments, Span | None], Shape]
Ways = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Primitive:
    """One row of the table.

    ``linear`` has the sets of arguments in which it is linear together if the others are known.
    ``zeros`` are the positions of which one zero argument makes the result zero. ``attributes``
    maps a keyword that is no tensor to what it takes: an axis named by its dim, or a number.
    """

    name: str
    arity: tuple[int, int]
    shape: ShapeRule
    torch: str
    linear: Ways = ()
    zeros: tuple[int, ...] = ()
    attributes: tuple[tuple[str, Literal["axis", "number"]], ...] = ()
    keeps_ones: bool = False

    @property
    def elementwise(self) -> bool:
        """Whether each feature of the result is made of the same feature of the arguments."""
        return self.name in _ELEMENTWISE


def _same(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    return arguments[0].shape


def _elementwise(what: str) -> ShapeRule:
    def rule(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
        return shapes.broadcast(arguments[0], arguments[1], what, span)

    return rule


def _linear(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    x, weight = arguments[:2]
    _need_rank("linear", weight, 2, span)
    rows, columns = weight.shape
    if not x.shape or not shapes.equal(x.shape[-1], columns, "linear", span):
        raise mismatch("linear", x, weight, span)
    if len(arguments) == 3 and not shapes.fits(arguments[2].shape, (rows,), "linear", span):
        raise mismatch("the bias of linear", weight, arguments[2], span)
    return (*x.shape[:-1], shapes.resolve(rows))


def _matmul(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    left, right = arguments
    _need_rank("@", right, 2, span)
    if len(left.shape) < 2 or not shapes.equal(left.shape[-1], right.shape[0], "@", span):
        raise mismatch("@", left, right, span)
    return (*left.shape[:-1], right.shape[1])


def _transpose(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    _need_rank("transpose", arguments[0], 2, span)
    return arguments[0].shape[::-1]


def _row_norm(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    _need_rank("row_norm", arguments[0], 2, span)
    return arguments[0].shape[:1]


def _kron(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    for argument in arguments:
        _need_rank("kron", argument, 2, span)
    (a, b), (c, d) = arguments[0].shape, arguments[1].shape
    return (a * c, b * d)


def _scale_rows(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    matrix, factors = arguments
    _need_rank("scale_rows", matrix, 2, span)
    if not shapes.fits(factors.shape, matrix.shape[:1], "scale_rows", span):
        raise mismatch("scale_rows", matrix, factors, span)
    return matrix.shape


def _dropout(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    _number_of("dropout", arguments[1], span)
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


def reduced(shape: Shape, axis: int) -> Shape:
    """A reduced dim stays, as 1, so that the result still lines up with its argument."""
    position = len(shape) + axis
    return (*shape[:position], ONE, *shape[position + 1 :])


def _join(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    """The shape but for the axis along which they are joined, which :func:`joined` adds up."""
    return max((a.shape for a in arguments), key=len)


def joined(shapes: Shapes, arguments: Arguments, axis: int, span: Span | None) -> Shape:
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


def _number_of(what: str, value: Expression, span: Span | None) -> Dim:
    known = value.number
    if known is None:
        raise error("S212", f"{what} takes a number known before the model runs", span)
    return known


def _reveal(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    mask, count = arguments
    return (*mask.shape[:-1], mask.shape[-1] + _number_of("reveal", count, span))


def _align(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    value, like = arguments
    if len(value.shape) < 2:
        return value.shape
    if any(d != ONE for d in value.shape[1:]):
        raise error(
            "S212",
            f"align takes one number an example, and `{value}` is {show_shape(value.shape)}",
            span,
        )
    return (value.shape[0], *(ONE for _ in like.shape[1:]))


def _split_heads(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    value, count = arguments
    _need_rank("split_heads", value, 2, span)
    heads = _number_of("split_heads", count, span)
    return (heads, value.shape[0], value.shape[1] / heads)


def _bilstm(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
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


def _place(shapes: Shapes, arguments: Arguments, span: Span | None) -> Shape:
    _number_of("place", arguments[2], span)
    return arguments[1].shape


_OVER: tuple[tuple[str, Literal["axis", "number"]], ...] = (("over", "axis"),)
_ALONG: tuple[tuple[str, Literal["axis", "number"]], ...] = (("along", "axis"),)

_FIRST: Ways = ((0,),)
_BOTH: Ways = ((0, 1),)
_KERNELS = "surgery.graft.graphs.kernels."
_FUNCTIONAL = "torch.nn.functional."

_TABLE = (
    Primitive("scale_rows", (2, 2), _scale_rows, _KERNELS + "scale_rows", zeros=(0, 1)),
    Primitive("linear", (2, 3), _linear, _FUNCTIONAL + "linear", ((0, 2),), (0, 1)),
    Primitive("add", (2, 2), _elementwise("+"), "operator.add", _BOTH),
    Primitive("subtract", (2, 2), _elementwise("-"), "operator.sub", _BOTH),
    Primitive("multiply", (2, 2), _elementwise("*"), "operator.mul", ((0,), (1,)), (0, 1)),
    Primitive("divide", (2, 2), _elementwise("/"), "operator.truediv", _FIRST, (0,)),
    Primitive("negate", (1, 1), _same, "operator.neg", _FIRST, (0,)),
    Primitive("matmul", (2, 2), _matmul, "torch.matmul", _FIRST, (0, 1)),
    Primitive("transpose", (1, 1), _transpose, "torch.t", zeros=(0,)),
    Primitive("kron", (2, 2), _kron, "torch.kron", zeros=(0, 1)),
    Primitive("row_norm", (1, 1), _row_norm, _KERNELS + "row_norm", zeros=(0,)),
    Primitive("dropout", (2, 2), _dropout, _FUNCTIONAL + "dropout", _FIRST, (0,)),
    Primitive("detach", (1, 1), _same, "torch.detach", _FIRST, (0,)),
    Primitive("relu", (1, 1), _same, _FUNCTIONAL + "relu", zeros=(0,)),
    Primitive("gelu", (1, 1), _same, _FUNCTIONAL + "gelu", zeros=(0,)),
    Primitive("silu", (1, 1), _same, _FUNCTIONAL + "silu", zeros=(0,)),
    Primitive("tanh", (1, 1), _same, "torch.tanh", zeros=(0,)),
    Primitive("sigmoid", (1, 1), _same, "torch.sigmoid"),
    Primitive("softplus", (1, 1), _same, _FUNCTIONAL + "softplus"),
    Primitive("exp", (1, 1), _same, "torch.exp"),
    Primitive("log", (1, 1), _same, "torch.log"),
    Primitive("sqrt", (1, 1), _same, "torch.sqrt", zeros=(0,)),
    Primitive("abs", (1, 1), _same, "torch.abs", zeros=(0,)),
    Primitive("identity", (1, 1), _same, "operator.pos", _FIRST, (0,)),
    Primitive("softmax", (1, 1), _same, "torch.softmax", attributes=_OVER),
    Primitive("mean", (1, 1), _same, "torch.mean", _FIRST, (0,), _OVER, keeps_ones=True),
    Primitive("sum", (1, 1), _same, "torch.sum", _FIRST, (0,), _OVER, keeps_ones=True),
    Primitive("max", (1, 1), _same, "torch.amax", zeros=(0,), attributes=_OVER, keeps_ones=True),
    Primitive("pool", (1, 1), _same, "torch.mean", zeros=(0,), attributes=_OVER, keeps_ones=True),
    Primitive("cat", (2, 2), _join, _KERNELS + "cat", _BOTH, attributes=_ALONG),
    Primitive("reveal", (2, 2), _reveal, "", attributes=_ALONG),
    Primitive("align", (2, 2), _align, _KERNELS + "align", zeros=(0,)),
    Primitive("split_heads", (2, 2), _split_heads, _KERNELS + "split_heads", zeros=(0,)),
    Primitive("bilstm", (5, 5), _bilstm, _KERNELS + "bilstm"),
    Primitive("place", (3, 3), _place, ""),
)
_ELEMENTWISE = frozenset(
    [
        "add",
        "subtract",
        "multiply",
        "divide",
        "negate",
        "dropout",
        "detach",
        "relu",
        "gelu",
        "silu",
        "tanh",
        "sigmoid",
        "softplus",
        "exp",
        "log",
        "sqrt",
        "abs",
        "identity",
    ]
)

PRIMITIVES: dict[str, Primitive] = {p.name: p for p in _TABLE}
OPERATORS = {
    "+": "add",
    "-": "subtract",
    "*": "multiply",
    "/": "divide",
    "@": "matmul",
}
OF_REAL_NUMBERS = (
    "relu",
    "gelu",
    "softplus",
    "softmax",
    "max",
    "abs",
    "bilstm",
    "attend",
    "dropout",
)
"""What torch computes of no complex numbers, or makes real ones of them."""

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "kaiming_uniform": ("a",),
    "xavier_uniform": ("gain",),
    "normal": ("std",),
    "uniform": ("bound",),
    "orthogonal": (),
    "vocabulary": ("text",),
}
