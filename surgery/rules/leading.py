"""Names for the leading dims that `*` stands for, once a rule names them: `x[z, s, d]`."""

from __future__ import annotations

from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression
from surgery.rules.state import State


def _leading(count: int) -> tuple[Dim, ...]:
    return tuple(Dim.named(f"*{i}") for i in range(count))


def named_leading(
    value: Expression, leading: int, known: dict[Expression, Expression] | None = None
) -> Expression:
    """``value`` with names for the leading dims of all its parts; parts that recur are ``known``."""
    known = {} if known is None else known
    if not value.varies:
        return value
    if value not in known:
        arguments = tuple(named_leading(part, leading, known) for part in value.arguments)
        named = (*_leading(leading), *value.shape[1:])
        shape = named if value.shape[:1] == (STAR,) else value.shape
        known[value] = Expression(value.op, arguments, value.attributes, shape, value.span)
    return known[value]


def spread(state: State, leading: int) -> None:
    """Name the leading dims that `*` stood for, in everything the operator reads and gives."""
    state.result = named_leading(state.result, leading)
    state.origin = named_leading(state.origin, leading)
    state.operands = {k: v and named_leading(v, leading) for k, v in state.operands.items()}
