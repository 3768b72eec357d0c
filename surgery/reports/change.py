"""An expression told in terms of the one that it was before."""

from __future__ import annotations

from surgery.rules.expression import Expression, operand
from surgery.rules.program import Program
from surgery.rules.simplify import substitute
from surgery.rules.slices import rows_in, take
from surgery.rules.state import OPERANDS


def change(before: Expression, after: Expression) -> str:
    """``after`` in terms of ``before``, which is called `y`."""
    if after.op == "put" and after.arguments[0] == before:
        return change(take(before, rows_in(after)), after.arguments[1])
    y = operand("y", before.shape)
    if after.op == "add" and before in after.arguments:
        left, right = after.arguments
        added = right if left == before else left
        return f"y += {substitute(added, {before: y})}"
    return f"y = {substitute(after, {before: y})}"


def change_of(before: Program, after: Program) -> str:
    """What ``after`` makes of the result and of the core that ``before`` has."""
    texts = [change(before.result, after.result)] if after.result != before.result else []
    if after.core is not None and before.core is not None and after.core != before.core:
        texts.append(_change_of_core(before.core, after.core))
    return "; ".join(texts)


def _change_of_core(before: Expression, after: Expression) -> str:
    """The operands of an attention that ``after`` makes others, each in terms of its own."""
    if before.op != "attend" or after.op != "attend":
        return change(before, after).replace("y", "o", 1)
    operands = zip(OPERANDS["attention"], before.arguments, after.arguments, strict=True)
    return "; ".join(
        f"{name} = {substitute(new, {old: operand(name, old.shape)})}"
        for name, old, new in operands
        if new != old
    )
