"""What an expression costs, as a polynomial of its dims."""

from __future__ import annotations

from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression

_FREE = frozenset(
    [
        "operand",
        "param",
        "number",
        "base",
        "transpose",
        "detach",
        "identity",
        "cat",
        "reveal",
        "align",
        "split_heads",
        "flip",
        "place",
        "put",
        "rows",
        "tokens",
        "eye",
        "expand",
        "spread",
        "vector",
    ]
)
"""What moves values about, at most."""


def flops(expression: Expression) -> Dim:
    """Multiplications and additions of one node, for one position of the leading dims."""
    if expression.op == "linear":
        rows, columns = expression.arguments[1].shape
        return rows * columns * 2
    if expression.op == "matmul":
        rows, inner = (Dim.of(1), *expression.arguments[0].shape)[-2:]
        columns = expression.arguments[1].shape[1]
        leading = rows if rows != STAR else Dim.of(1)
        return leading * inner * columns * 2
    if expression.op == "attend":
        query, key, value = expression.arguments[:3]
        return query.shape[1] * key.shape[2] * (key.shape[3] + value.shape[3]) * 2
    if expression.op == "bilstm":
        into, hidden = expression.arguments[1:3]
        return expression.shape[0] * into.shape[1] * (into.shape[2] + hidden.shape[2]) * 4
    if expression.op in _FREE:
        return Dim.of(0)
    size = Dim.of(1)
    source = expression.arguments[0] if expression.op == "row_norm" else expression
    for dim in source.shape:
        size = size * (Dim.of(1) if dim == STAR else dim)
    return size
