"""What a method changed, as a term of its own: y - base, where y = base + Δ.

A verb writes `y = base + g * (y - base)`. Sums and differences of results are brought to forms in
which only Δ is scaled: no second product with the weight, and no result that is taken from itself.
"""

from __future__ import annotations

from collections import Counter

from surgery.language.source import Span
from surgery.rules.expression import Expression, Shape, is_number, number, walk
from surgery.rules.shapes import ONE
from surgery.rules.simplify import make

Term = tuple[int, Expression]
"""A sign, and what is added with it."""
_MOST_TERMS = 50


def difference(
    after: Expression, before: Expression, shape: Shape, span: Span | None
) -> Expression:
    """``after - before``, without what both have.

    >>> from surgery.rules.dims import Dim
    >>> from surgery.rules.expression import param
    >>> n = (Dim.named("n"),)
    >>> y, l, d = param("y", n), param("l", n), param("d", n)
    >>> print(difference(make("add", (y, d), n), y, n, None))
    d
    >>> print(difference(make("multiply", (l, y), n), y, n, None))
    (l - 1) * y

    """
    plain = rest, removed = _cancelled(terms(after), terms(before))
    split = _cancelled(_split(rest), _split(removed))
    if sum(map(len, split)) <= sum(map(len, plain)):
        rest, removed = split
    left: list[Term] = []
    for sign, t in removed:
        found = _within(rest, (sign, t)) if len(rest) <= _MOST_TERMS else None
        if found is None:
            left.append((-sign, t))
        else:
            rest = found
    if len(left) == len(terms(before)):
        return make("subtract", (after, before), shape, span=span)
    return _sum([*rest, *left], shape, span)


def together(base: Expression, added: Expression, shape: Shape, span: Span | None) -> Expression:
    """``base + added`` as one product with the weight, or with one factor, where that is equal.

    >>> from surgery.rules.dims import Dim
    >>> from surgery.rules.expression import operand, param
    >>> n = (Dim.named("n"),)
    >>> x, l, g = operand("x", n), param("l", n), param("g", ())
    >>> change = difference(make("multiply", (l, x), n), x, n, None)
    >>> print(together(x, make("multiply", (g, change), n), n, None))
    ((g * (l - 1)) + 1) * x

    """
    for left, right in ((base, added), (added, base)):
        found = left.varies and (_one_factor(left, right, span) or _one_product(left, right, span))
        if found:
            return found
    if _biased(base) and any(e == _unbiased(base) for e in walk(added)):
        base = make("add", (_unbiased(base), base.arguments[2]), base.shape, span=base.span)
    return make("add", (base, added), shape, span=span)


def _one_factor(base: Expression, added: Expression, span: Span | None) -> Expression | None:
    """``base + g · (f - 1) · base`` as ``(1 + g · (f - 1)) · base``.

    Of another factor, which may be small, a sum with 1 would lose digits.
    """
    factor = _multiple(added, base)
    # Patches and ids are multiplied by what is known alone.
    if factor is None or (factor.varies and base.op == "operand"):
        return None
    if not any(e.op == "subtract" and is_number(e.arguments[1], 1) for e in walk(factor)):
        return None
    whole = make("add", (factor, number(1, span)), factor.shape, span=span)
    return make("multiply", (whole, base), base.shape, span=span)


def _one_product(base: Expression, added: Expression, span: Span | None) -> Expression | None:
    """``linear(x, W, b) + g · linear(u, W)`` as ``linear(x + g · u, W, b)``."""
    factor, inner = _factored(added)
    if not base.op == inner.op == "linear" or len(inner.arguments) != 2:
        return None
    x, weight, *bias = base.arguments
    more, other = inner.arguments
    scalar = factor is None or factor.shape[-1:] in ((), (ONE,))
    if weight != other or not weight.reads("W") or not scalar:
        return None
    if factor is not None:
        more = make("multiply", (factor, more), x.shape, span=span)
    x = together(x, more, x.shape, span)
    return make("linear", (x, weight, *bias), base.shape, span=span)


def terms(e: Expression) -> list[Term]:
    """The terms of a sum."""
    match e.op, e.arguments:
        case "add", (a, b):
            return [*terms(a), *terms(b)]
        case "subtract", (a, b):
            return [*terms(a), *((-sign, t) for sign, t in terms(b))]
        case "negate", (a,):
            return [(-sign, t) for sign, t in terms(a)]
        case _:
            return [(1, e)]


def _biased(e: Expression) -> bool:
    return e.op == "linear" and len(e.arguments) == 3


def _unbiased(e: Expression) -> Expression:
    return make("linear", e.arguments[:2], e.shape, span=e.span)


def _split(whole: list[Term]) -> list[Term]:
    """``whole`` with biases as terms of their own."""
    found: list[Term] = []
    for sign, t in whole:
        found += [(sign, _unbiased(t)), (sign, t.arguments[2])] if _biased(t) else [(sign, t)]
    return found


def _cancelled(after: list[Term], before: list[Term]) -> tuple[list[Term], list[Term]]:
    """Both without the terms that they share."""
    shared = Counter(after) & Counter(before)
    return _without(after, shared), _without(before, shared)


def _without(whole: list[Term], taken: Counter[Term]) -> list[Term]:
    left, waiting = list[Term](), Counter(taken)
    for term in whole:
        if waiting[term]:
            waiting[term] -= 1
        else:
            left.append(term)
    return left


def _within(whole: list[Term], taken: Term) -> list[Term] | None:
    """``whole`` less ``taken``, if one of them is a multiple of it, or a product of the same kind."""
    sign, t = taken
    for place, (other, e) in enumerate(whole):
        if other != sign:
            continue
        parts = _distributed(e, t)
        for i, part in enumerate(parts):
            factor = _multiple(part, t)
            if factor is not None:
                less = make("subtract", (factor, number(1, part.span)), factor.shape)
                left = make("multiply", (less, t), t.shape, span=part.span)
            else:
                left = _less(part, t)
            if left is not None:
                made = [(other, p) for p in (*parts[:i], left, *parts[i + 1 :])]
                return [*whole[:place], *made, *whole[place + 1 :]]
    return None


def _distributed(e: Expression, t: Expression) -> list[Expression]:
    """The terms of a product with a sum that ``t`` is a term of; else ``e`` alone."""
    if e.op == "multiply":
        for factor, inner in (e.arguments, e.arguments[::-1]):
            found = terms(inner)
            if len(found) > 1 and all(sign == 1 for sign, _ in found) and (1, t) in found:
                return [make("multiply", (factor, p), p.shape, span=e.span) for _, p in found]
    return [e]


def _multiple(e: Expression, of: Expression) -> Expression | None:
    """The factor f of ``e = f · of``, if it is one made of parameters."""
    if e.op != "multiply":
        return None
    for factor, inner in (e.arguments, e.arguments[::-1]):
        if inner == of and _is_small(factor, of):
            return factor
        deeper = _multiple(inner, of)
        if deeper is not None and _is_small(factor, of):
            shape = factor.shape if len(factor.shape) > len(deeper.shape) else deeper.shape
            if factor.shape[-1:] == (ONE,) and deeper.shape:
                shape = (*shape[:-1], deeper.shape[-1])
            return make("multiply", (factor, deeper), shape, span=e.span)
    return None


def _is_small(factor: Expression, of: Expression) -> bool:
    """Whether a factor is a number, a vector, or one for each example."""
    return len(factor.shape) <= 1 or factor.shape[-1] == ONE or not factor.varies


def _less(e: Expression, t: Expression) -> Expression | None:
    """``e - t`` as one product: of another input with the same weight, or the other way round."""
    if not e.op == t.op == "linear" or len(e.arguments) != len(t.arguments):
        return None
    (x, weight, *bias), (x0, weight0, *bias0) = e.arguments, t.arguments
    if bias != bias0:
        return None
    if weight == weight0 and x != x0:
        x = difference(x, x0, x.shape, e.span)
    elif x == x0:
        weight = difference(weight, weight0, weight.shape, e.span)
    else:
        return None
    return make("linear", (x, weight), e.shape, span=e.span)


def _factored(e: Expression) -> tuple[Expression | None, Expression]:
    """A product with a weight, and what it is multiplied by."""
    if e.op == "multiply":
        for factor, inner in (e.arguments, e.arguments[::-1]):
            if inner.op == "linear":
                return factor, inner
    return None, e


def _sum(whole: list[Term], shape: Shape, span: Span | None) -> Expression:
    total: Expression | None = None
    for sign, t in sorted(whole, key=lambda term: -term[0]):
        if total is None:
            total = t if sign > 0 else make("negate", (t,), t.shape, span=span)
        else:
            total = make("add" if sign > 0 else "subtract", (total, t), shape, span=span)
    return total if total is not None else number(0, span, shape)
