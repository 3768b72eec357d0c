"""The equation of an einsum, read."""

from __future__ import annotations

_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(equation: str, ranks: tuple[int, int]) -> tuple[str, str, str] | None:
    """The axes of both operands and of the result, if there are two and each axis is named once.

    Dots stand for as many axes as the operand of these ``ranks`` has more than letters.
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    one, comma, other = given.partition(",")
    if not arrow or not comma:
        return None
    spare = "".join(c for c in _SPARE if c not in equation)
    counts = [rank - len(t.replace("...", "")) for t, rank in zip((one, other), ranks, strict=True)]
    most = max((n for t, n in zip((one, other), counts, strict=True) if "..." in t), default=0)
    if min(counts) < 0:
        return None
    terms = (
        one.replace("...", spare[: counts[0]][::-1]),
        other.replace("...", spare[: counts[1]][::-1]),
        result.replace("...", spare[:most][::-1]),
    )
    if any(len(set(t)) != len(t) or not t.isalpha() for t in terms):
        return None
    return terms
