"""How tight operators bind, and which of them stand side by side without parentheses."""

from __future__ import annotations

_LEVELS = [{"or"}, {"and"}, {"not"}, {"<", "<=", ">", ">=", "==", "!="}, {"+", "-"}, {*"*/@%"}]
LEVEL = {sign: level for level, signs in enumerate(_LEVELS) for sign in signs}
MINUS = len(_LEVELS)
"""The level of the sign."""


def run_on(left: str, right: str) -> bool:
    """Whether `a left b right c` reads well; `(a @ b) * c` keeps its parentheses."""
    same = LEVEL[left] == LEVEL[right] != LEVEL["<"]
    return same and (left == right or not {left, right} & {"@", "%"})
