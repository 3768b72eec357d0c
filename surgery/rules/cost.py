"""What an expression costs, as a polynomial of its dims."""

from __future__ import annotations

from surgery.rules.dims import Dim
from surgery.rules.expression import Expression
from surgery.rules.primitive import elements
from surgery.rules.primitives import PRIMITIVES


def flops(expression: Expression) -> Dim:
    """Multiplications and additions of one node, for one position of the leading dims.

    The rows of the primitives say it. A block that is not known yet, or a norm of the model, counts
    once for each element; what else is no primitive is there already or moves values about.
    """
    primitive = PRIMITIVES.get(expression.op)
    if primitive:
        return primitive.cost(expression)
    if expression.op == "attend":
        query, key, value = expression.arguments[:3]
        return query.shape[1] * key.shape[2] * (key.shape[3] + value.shape[3]) * 2
    return elements(expression) if expression.op in ("block", "host") else Dim.of(0)
