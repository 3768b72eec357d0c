"""Networks that compute constants, replaced by what they compute.

A prefix or a prompt may be made by a network from other parameters. After training only the
result is needed: it becomes a param of its own, and what made it is not needed any more.
"""

from __future__ import annotations

from surgery.rules.expression import Expression, param, rebuild, walk
from surgery.rules.state import State
from surgery.rules.values import Declaration, Init


# Prefix-tuning's network (Li & Liang) and P-tuning's prompt encoder are thrown away after training.
def fold(states: tuple[State, ...], child: str, declared: list[Declaration]) -> list[Declaration]:
    """Fold what ``child`` makes of its params alone in attentions and tokens; its params after.

    A folded param has as its init the expression that it replaces.
    """
    made: dict[Expression, Declaration] = {}

    def change(e: Expression) -> Expression | None:
        if e.varies or e.op in ("param", "operand", "number") or not e.leaves:
            return None
        if not all(x.op == "param" and x.name.startswith(f"{child}.") for x in e.leaves):
            return None
        if e not in made:
            span = declared[0].span
            name = f"{child}.folded{len(made)}"
            shape = tuple(states[0].shapes.resolve(d) for d in e.shape)
            made[e] = Declaration(name, shape, Init(None, value=e), False, None, span)
        return param(made[e].name, e.shape)

    for state in states:
        if state.kind in ("attention", "tokens"):
            state.result = rebuild(state.result, change)
    used = {x.name for state in states for x in state.result.leaves if x.op == "param"}
    return [*(d for d in declared if d.name in used), *made.values()]


def folds(result: Expression, child: str) -> bool:
    """Whether anything that ``child`` makes in ``result`` folds."""
    return any(
        not e.varies
        and e.op not in ("param", "operand", "number")
        and bool(e.leaves)
        and all(x.op == "param" and x.name.startswith(f"{child}.") for x in e.leaves)
        for e in walk(result)
    )
