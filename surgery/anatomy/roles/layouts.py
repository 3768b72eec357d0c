"""In which order the operands of an attention's products have their axes.

An order lists the axes of a tensor so that, permuted by it, they are batch, heads, length and
features: of a product of three axes the first holds the batch, or batch and heads in one.
"""

from __future__ import annotations

from dataclasses import dataclass

Order = tuple[int, ...]


@dataclass(frozen=True)
class Scoring:
    """A product of queries and keys: which operand the keys are, and the orders of both."""

    keys_at: int
    query: Order
    key: Order


@dataclass(frozen=True)
class Weighing:
    """A product of weights and values: which operand the values are, their order, the result's."""

    values_at: int
    value: Order
    result: Order


def scoring(equation: str | None, ranks: tuple[int, int]) -> Scoring | None:
    """How a product scores keys, by its equation if it is an einsum, else by its ``ranks``.

    None if it does not: keys are the last axis of the result, and queries and keys share their
    features, which are summed over, and the batch. What else queries have are heads and positions.
    """
    if equation is None:
        *batch, features, length = range(ranks[1])
        return Scoring(1, tuple(range(ranks[0])), (*batch, length, features))
    terms = letters(equation)
    if terms is None:
        return None
    *operands, result = terms
    if not result or (result[-1] in operands[0]) == (result[-1] in operands[1]):
        return None
    keys_at = 0 if result[-1] in operands[0] else 1
    query, key = operands[1 - keys_at], operands[keys_at]
    batch = [c for c in result if c in query and c in key]
    summed = [c for c in query if c in key and c not in result]
    ahead = [c for c in result if c in query and c not in key]
    if len(summed) != 1 or not ahead or len(batch) + len(ahead) > 3 or not batch:
        return None
    return _scoring(keys_at, query, key, [*batch, *ahead, *summed], [*batch, result[-1], *summed])


def _scoring(
    keys_at: int, query: str, key: str, query_axes: list[str], key_axes: list[str]
) -> Scoring | None:
    if sorted(query) != sorted(query_axes) or sorted(key) != sorted(key_axes):
        return None
    return Scoring(keys_at, _order(query, query_axes), _order(key, key_axes))


def weighing(equation: str | None, rank: int, values_at: int) -> Weighing | None:
    """How a product weighs values, or None if it does not."""
    if equation is None:
        plain = tuple(range(rank))
        return Weighing(1, plain, plain) if values_at == 1 else None
    terms = letters(equation)
    if terms is None:
        return None
    *operands, result = terms
    weights, value = operands[1 - values_at], operands[values_at]
    batch = [c for c in weights if c in value and c in result]
    summed = [c for c in weights if c in value and c not in result]
    own = [c for c in value if c in result and c not in weights]
    ahead = [c for c in weights if c in result and c not in value]
    if len(summed) != 1 or len(own) != 1 or weights[-1] not in summed or not batch:
        return None
    value_axes, result_axes = [*batch, *summed, *own], [*batch, *ahead, *own]
    if sorted(value) != sorted(value_axes) or sorted(result) != sorted(result_axes):
        return None
    return Weighing(values_at, _order(value, value_axes), _order(result, result_axes))


def letters(equation: str) -> tuple[str, str, str] | None:
    """The axes of both operands and of the result, if there are two and each axis is named once."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    one, comma, other = given.partition(",")
    terms = (one, other, result)
    if not arrow or not comma or any(len(set(t)) != len(t) or not t.isalpha() for t in terms):
        return None
    return terms


def _order(term: str, axes: list[str]) -> Order:
    return tuple(term.index(axis) for axis in axes)
