"""A module's result with and without what a method does to the attention in it, and what is between.

New keys and values are no term of the module's result. So a result that is read after an attention
was changed tells with which change: `base(x, o)`. A rule may put a factor to the change,
`y = base + g * (y - base)`; that factor then scales what stands in front of keys and values, and
whatever else was changed in the attention, as a term.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from surgery.language.diagnostics import SurgeryError, error
from surgery.language.source import Span
from surgery.rules.changes import difference, terms, together
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, number, rebuild, walk
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import ONE
from surgery.rules.simplify import make, substitute
from surgery.rules.state import State

Factors = tuple[Expression, ...]
Weight = dict[Factors, Dim]
"""A sum of products: a number for each set of factors."""


def settle(value: Expression, state: State, span: Span) -> Expression:
    """``value`` of the module's result alone; a factor of the attention's change goes into that.

    Raises:
        SurgeryError: S270 if both the result with and that without the change are read, and not as
            `base + g * (y - base)`.

    """
    if state.core is None:
        return value
    read = {e.arguments[1:] for e in walk(value) if e.op == "base"}
    now = state.told_core
    if read - {now}:
        if len(read - {now}) > 1:
            raise _mixed(span)
        (before,) = read - {now}
        sums, rest = _sums(value, span)
        gate = next((_added([s.get(now, {})]) for e, s in sums.items() if e.op == "base"), {})
        old = before[0] if before else state.core.base
        assert old is not None
        state.core.become(_between(old, state.core.result, _product(gate, span), state, span))
        whole = {e: _added(by_core.values()) for e, by_core in sums.items()}
        if any(_added([sums[e].get(now, {})]) != _times_each(gate, w) for e, w in whole.items()):
            raise _mixed(span)
        value = _written(whole, rest, state.result, span)
    return _plain(value)


def _written(
    sums: dict[Expression, Weight], rest: list[Expression], result: Expression, span: Span
) -> Expression:
    """The sum of products with the terms that are beside them; ``result`` itself, if it is that."""
    known, others = _sums(result, span)
    same = sums == {e: _added(by_core.values()) for e, by_core in known.items()}
    if same and Counter(rest) == Counter(others):
        return result
    products = [
        make("multiply", (_product(weight, span), e), e.shape, span=span)
        for e, weight in sums.items()
    ]
    value, *more = (*products, *rest)
    for term in more:
        value = make("add", (value, term), term.shape, span=span)
    return value


def _plain(value: Expression) -> Expression:
    """``value`` of results that do not tell with which attention."""

    def change(e: Expression) -> Expression | None:
        return replace(e, arguments=e.arguments[:1]) if e.op == "base" else None

    return rebuild(value, change)


def _mixed(span: Span) -> SurgeryError:
    return error(
        "S270",
        "this reads the result both with and without what was done to the attention in it",
        span,
        help="a factor can scale that: `y = base + g * (y - base)`",
    )


def _sums(
    value: Expression, span: Span
) -> tuple[dict[Expression, dict[tuple[Expression, ...], Weight]], list[Expression]]:
    """The terms that read the result, each with what it is multiplied by for each attention.

    The other terms come beside them.
    """
    sums: dict[Expression, dict[tuple[Expression, ...], Weight]] = {}
    rest: list[Expression] = []
    for factor, factors, e in _expanded(value, span):
        cores = {part.arguments[1:] for part in walk(e) if part.op == "base"}
        if not cores:
            for f in (*factors, number(factor)):
                e = make("multiply", (f, e), e.shape, span=span)
            rest.append(e)
            continue
        if len(cores) > 1:
            raise _mixed(span)
        weight = sums.setdefault(_plain(e), {}).setdefault(cores.pop(), {})
        key = tuple(sorted(factors, key=str))
        weight[key] = weight.get(key, Dim.of(0)) + factor
    return sums, rest


def _expanded(e: Expression, span: Span) -> Iterator[tuple[Dim, Factors, Expression]]:
    """The terms of a sum, with products of sums multiplied out: a number, factors, and the term."""
    if e.op == "base" or not _reads_result(e):
        yield Dim.of(1), (), e
        return
    match e.op, e.arguments:
        case "add" | "subtract", (left, right):
            yield from _expanded(left, span)
            sign = -1 if e.op == "subtract" else 1
            yield from ((n * sign, f, t) for n, f, t in _expanded(right, span))
        case "negate", (inner,):
            yield from ((n * -1, f, t) for n, f, t in _expanded(inner, span))
        case "multiply", (left, right) if _reads_result(left) != _reads_result(right):
            factor, inner = (right, left) if _reads_result(left) else (left, right)
            for n, factors, t in _expanded(inner, span):
                for sign, f in terms(factor):
                    if f.number is None:
                        yield n * sign, (*factors, f), t
                    else:
                        yield n * sign * f.number, factors, t
        case "linear", (x, weight, *bias) if not _reads_result(weight):
            # A difference of two products with one weight is a product of a difference.
            for n, factors, t in _expanded(x, span):
                if any(f.shape[-1:] not in ((), (ONE,)) for f in factors):
                    raise _mixed(span)
                yield n, factors, make("linear", (t, weight), e.shape, span=e.span)
            yield from ((Dim.of(1), (), b) for b in bias)
        case _:
            yield Dim.of(1), (), e


def _reads_result(e: Expression) -> bool:
    return any(part.op == "base" for part in walk(e))


def _added(weights: Iterable[Weight]) -> Weight:
    total: Weight = {}
    for weight in weights:
        for factors, n in weight.items():
            total[factors] = total.get(factors, Dim.of(0)) + n
    return {factors: n for factors, n in total.items() if n.terms}


def _times_each(one: Weight, other: Weight) -> Weight:
    products = [
        {tuple(sorted((*a, *b), key=str)): n * m} for a, n in one.items() for b, m in other.items()
    ]
    return _added(products)


def _product(weight: Weight, span: Span) -> Expression:
    total = number(0, span)
    for factors, n in weight.items():
        term = number(n, span)
        for f in factors:
            term = make("multiply", (term, f), f.shape, span=span)
        total = make("add", (total, term), term.shape or total.shape, span=span)
    return total


def _between(
    old: Expression, new: Expression, gate: Expression, state: State, span: Span
) -> Expression:
    """An attention between two, with ``gate`` times what is changed from ``old`` to ``new``."""
    before, after = (next(e for e in walk(c) if e.op == "attend") for c in (old, new))
    operands = tuple(
        _operand(a, b, gate, state, span)
        for a, b in zip(before.arguments, after.arguments, strict=True)
    )
    attention = Expression("attend", operands, after.attributes, after.shape, after.span)
    old, new = substitute(old, {before: attention}), substitute(new, {after: attention})
    return old if old == new else _scaled(old, new, gate, state, span)


def _operand(
    old: Expression, new: Expression, gate: Expression, state: State, span: Span
) -> Expression:
    if old == new or new.op == "reveal":
        return new
    if new.op == "cat":
        front, inner = new.arguments
        stood = old.op == "cat" and old.arguments[0] == front
        inner = _operand(old.arguments[1] if stood else old, inner, gate, state, span)
        if not stood:
            front = _times(gate, front, _in_front(inner), state, span)
        return make("cat", (front, inner), new.shape, new.attributes, new.span)
    return _scaled(old, new, gate, state, span)


def _in_front(e: Expression) -> Expression:
    """``e`` without what stands in front of it."""
    while e.op == "cat":
        e = e.arguments[1]
    return e


def _scaled(
    old: Expression, new: Expression, gate: Expression, state: State, span: Span
) -> Expression:
    change = difference(new, old, new.shape, span)
    return together(old, _times(gate, change, new, state, span), new.shape, span)


def _times(
    gate: Expression, value: Expression, like: Expression, state: State, span: Span
) -> Expression:
    """``value`` scaled by a gate of each example, whose dims line up with those of ``like``."""
    shape = PRIMITIVES["align"].shape(state.shapes, (gate, like), span, -1)
    gate = make("align", (gate, like), shape, span=span)
    shape = PRIMITIVES["multiply"].shape(state.shapes, (gate, value), span, -1)
    return make("multiply", (gate, value), shape, span=span)
