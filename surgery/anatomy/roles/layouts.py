"""In which order the operands of an attention's products have their axes.

An order lists the axes of a tensor so that, permuted by it, they are batch, heads, length and
features: of a product of three axes the first holds the batch, or batch and heads in one (BLOOM). With
blocks of keys (LongT5), or several streams of queries (ProphetNet), there are more; these stand behind the
heads. XLNet's einsum has the length first: `ibnd,jbnd->bnij`.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgery.layers.einsum import letters

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


def scoring(equation: str | None, ranks: tuple[int, int], heads_at: int = 1) -> Scoring | None:
    """How a product scores keys, by its equation if it is an einsum, else by its ``ranks``.

    Of more than four axes of scores ``heads_at`` is that of the heads. None if it does not: keys
    are the last axis of the result, and queries and keys share their features, which are summed
    over, and the batch. What else queries have are heads, blocks and positions.
    """
    if equation is None:
        query, key = (_plain(rank, heads_at) for rank in ranks)
        return Scoring(1, query, (*key[:-2], key[-1], key[-2]))
    terms = letters(equation, ranks)
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
    if len(summed) != 1 or not ahead or not batch:
        return None
    leading = _lead(result, batch, ahead[:-1], heads_at)
    if len(leading) > 2 and leading[1] not in key:
        return None
    query_axes = [*leading, ahead[-1], *summed]
    key_axes = [*(c for c in leading if c in batch), result[-1], *summed]
    if sorted(query) != sorted(query_axes) or sorted(key) != sorted(key_axes):
        return None
    return Scoring(keys_at, _order(query, query_axes), _order(key, key_axes))


def weighing(
    equation: str | None, ranks: tuple[int, int], values_at: int, heads_at: int = 1
) -> Weighing | None:
    """How a product of operands with so many axes weighs values, or None if it does not."""
    if equation is None:
        if values_at != 1:
            return None
        return Weighing(1, _plain(ranks[1], heads_at), _plain(max(ranks), heads_at))
    terms = letters(equation, ranks)
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
    leading = _lead(weights, batch, ahead[:-1], heads_at)
    value_axes = [*(c for c in leading if c in batch), *summed, *own]
    result_axes = [*leading, *ahead[-1:], *own]
    if sorted(value) != sorted(value_axes) or sorted(result) != sorted(result_axes):
        return None
    return Weighing(values_at, _order(value, value_axes), _order(result, result_axes))


def _plain(rank: int, heads_at: int) -> Order:
    """The order of an operand whose last two axes are a matrix."""
    return (*_leading(rank - 2, heads_at), rank - 2, rank - 1)


def _leading(count: int, heads_at: int) -> list[int]:
    """The order in which the axes before the matrix are batch, heads and the rest."""
    axes = list(range(count))
    if count > 2:
        axes.insert(1, axes.pop(heads_at))
    return axes


def _lead(scores: str, batch: list[str], ahead: list[str], heads_at: int) -> list[str]:
    """The axes of batch, heads and the rest, of those that scores begin with."""
    axes = [*batch, *ahead]
    if len(axes) > 2:
        axes.sort(key=scores.index)
    return [axes[i] for i in _leading(len(axes), heads_at)]


def _order(term: str, axes: list[str]) -> Order:
    return tuple(term.index(axis) for axis in axes)
