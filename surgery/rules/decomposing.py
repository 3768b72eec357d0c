"""`let U, s, V = svd(W, r)`: a matrix of what only parameters go in, as several factors."""

from __future__ import annotations

from dataclasses import replace

from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError, error
from surgery.rules.conditions import Condition
from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression, Shape
from surgery.rules.named_dims import Caller, dim_named
from surgery.rules.operands import tensor
from surgery.rules.primitive import Primitive
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.ranges import SIZE, Range
from surgery.rules.shapes import show_shape


def unpack(step: syntax.Unpack, names: Caller) -> tuple[Expression, ...]:
    """The factors that ``step`` names.

    Raises:
        SurgeryError: S253 if the value is no decomposition, or has another number of factors.

    """
    call = step.value
    row = PRIMITIVES.get(call.function) if isinstance(call, syntax.Call) else None
    if not isinstance(call, syntax.Call) or row is None or not row.parts:
        known = " and ".join(f"`{p.name}`" for p in PRIMITIVES.values() if p.parts)
        raise error("S253", f"only {known} give several tensors", step.value.span)
    if len(step.names) != len(row.parts):
        raise in_parts(row, call)
    matrix, rank = _arguments(call, names)
    of = {
        "n": replace(matrix.shape[0], label=""),
        "m": replace(matrix.shape[1], label=""),
        "r": rank,
    }
    found: list[Expression] = []
    for i, dims in enumerate(row.parts):
        shape: Shape = tuple(of[d] for d in dims)
        attributes = (("_part", i),)
        number = Expression("number", (), (("value", replace(rank, label="")),), ())
        found.append(Expression(row.name, (matrix, number), attributes, shape, call.span))
    return tuple(found)


def in_parts(row: Primitive, call: syntax.Call) -> SurgeryError:
    """The error that a decomposition stands where one tensor does."""
    parts = {"svd": "U, s, V", "minor_svd": "U, s, V", "qr": "Q, R"}
    return error(
        "S253",
        f"`{row.name}` gives {len(row.parts)} tensors",
        call.span,
        help=f"`let {parts[row.name]} = {row.name}(W, r)` names them",
    )


def _arguments(call: syntax.Call, names: Caller) -> tuple[Expression, Dim]:
    if len(call.arguments) != 2 or any(a.name for a in call.arguments):
        raise error("S208", f"`{call.function}` takes a matrix and a rank", call.span)
    first, second = (a.value for a in call.arguments)
    matrix = tensor(names.evaluate(first), first.span)
    if len(matrix.shape) != 2 or STAR in matrix.shape or matrix.number is not None:
        raise error(
            "S212",
            f"{call.function} takes a matrix, and `{matrix}` is {show_shape(matrix.shape)}",
            first.span,
        )
    if matrix.varies:
        raise error(
            "S217",
            f"`{call.function}` is of what flows through the model",
            first.span,
            help="it is computed where only parameters go in, as the weight",
        )
    rank, label = dim_named(second, names)
    smaller = Dim.named("min", *(replace(d, label="") for d in matrix.shape))
    at_most = Range(
        f"the rank of `{call.function}` is at most the smaller dim of its matrix",
        lambda value: Condition("<=", (value, smaller)),
    )
    for range_ in (SIZE, at_most):
        names.demand(range_.of(rank, second.span, names.origin(second)))
    return matrix, rank.called(label)
