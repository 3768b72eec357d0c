"""An expression told in terms of the one that it was before."""

from __future__ import annotations

from surgery.rules.expression import Expression, operand
from surgery.rules.simplify import substitute


def change(before: Expression, after: Expression) -> str:
    """``after`` in terms of ``before``, which is called `y`."""
    y = operand("y", before.shape)
    if after.op == "add" and before in after.arguments:
        left, right = after.arguments
        added = right if left == before else left
        return f"y += {substitute(added, {before: y})}"
    return f"y = {substitute(after, {before: y})}"
