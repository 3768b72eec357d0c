"""A module's result with and without what a method does to the attention in it, and what is between.

New keys and values are no term of the module's result. So a result that is read after an attention
was changed tells with which change: `base(x, o)`. A rule may put a factor to the change,
`y = base + g * (y - base)`; that factor then scales what stands in front of keys and values, and
whatever else was changed in the attention, as a term.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from surgery.language.diagnostics import SurgeryError, error
from surgery.language.source import Span
from surgery.rules.changes import difference, terms, together
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, number, rebuild, walk
from surgery.rules.primitives import PRIMITIVES
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
        weights, rest = _weights(value, now, span)
        (before,) = read - {now} if len(read - {now}) == 1 else ((),)
        if weights.keys() - {before, now} or not _sum_to_one(weights.values()):
            raise _mixed(span)
        gate = _product(weights.get(now, {}), span)
        old = before[0] if before else state.core.base
        assert old is not None
        state.core.become(_between(old, state.core.result, gate, state, span))
        value = _plain(next(e for e in walk(value) if e.op == "base"))
        for term in rest:
            value = make("add", (value, term), value.shape, span=span)
    return rebuild(value, lambda e: _plain(e) if e.op == "base" else None)


def _plain(e: Expression) -> Expression:
    return Expression("base", e.arguments[:1], e.attributes, e.shape, e.span)


def _mixed(span: Span) -> SurgeryError:
    return error(
        "S270",
        "this reads the result both with and without what was done to the attention in it",
        span,
        help="a factor can scale that: `y = base + g * (y - base)`",
    )


def _weights(
    value: Expression, now: tuple[Expression, ...], span: Span
) -> tuple[dict[tuple[Expression, ...], Weight], list[Expression]]:
    """What the result with each attention is multiplied by in ``value``, and the other terms."""
    weights: dict[tuple[Expression, ...], Weight] = defaultdict(
        lambda: defaultdict(lambda: Dim.of(0))
    )
    rest: list[Expression] = []
    for factor, factors, e in _expanded(value, span):
        if e.op == "base":
            key = tuple(sorted(factors, key=str))
            weights[e.arguments[1:]][key] = weights[e.arguments[1:]][key] + factor
            continue
        for f in (*factors, number(factor)):
            e = make("multiply", (f, e), e.shape, span=span)
        rest.append(e)
    return weights, rest


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
        case _:
            raise _mixed(span)


def _reads_result(e: Expression) -> bool:
    return any(part.op == "base" for part in walk(e))


def _sum_to_one(weights: Iterator[Weight]) -> bool:
    total: Weight = defaultdict(lambda: Dim.of(0))
    for weight in weights:
        for factors, n in weight.items():
            total[factors] = total[factors] + n
    return {f: n for f, n in total.items() if n.terms} == {(): Dim.of(1)}


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
