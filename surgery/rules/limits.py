"""How large what a rule computes may grow: far beyond any use, and short of what never ends."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from surgery.language.diagnostics import Label, SurgeryError, error
from surgery.language.source import Span
from surgery.rules.conditions import Condition
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import Expression
from surgery.rules.values import Closure, Value

LARGEST = 2.0**63
"""The largest whole number; others are as large as floating point has them."""
_POWER = 32
_LARGE: dict[type[Dim | Condition | Expression | Closure], tuple[int, int]] = {
    Dim: (100, 16),
    Condition: (10_000, 70),
    Expression: (10_000, 100),
    Closure: (1_000, 64),
}
"""How many parts a value may have, written out, and how deep they may nest."""


def bounded(value: Value, span: Span | None) -> Value:
    """``value``, if it is not too large.

    Raises:
        SurgeryError: S242 if too much of it depends on one another; S243 for a number that is not
            finite, or a whole one that is too large.

    """
    for kind, (most, deepest) in _LARGE.items():
        if isinstance(value, kind):
            size, depth = value.extent
            if size > most or depth > deepest:
                reason = f"more than {most} parts" if size > most else f"more than {deepest} deep"
                raise error("S242", f"this becomes too large to be worked out: {reason}", span)
    if isinstance(value, Dim):
        _check_numbers(value, span)
    elif isinstance(value, Expression):
        for dim in value.shape:
            bounded(dim, span)
    return value


def _check_numbers(dim: Dim, span: Span | None) -> None:
    for monomial, coefficient in dim.terms:
        if not is_sound(coefficient) or any(abs(power) > _POWER for _, power in monomial):
            raise error("S243", "this number is too large", span)


def is_sound(number: Scalar) -> bool:
    """Whether a number is finite, and not too large where it is whole."""
    return abs(number) <= LARGEST if isinstance(number, int) else math.isfinite(number)


def at_site(dim: Dim, sizes: Mapping[str, Scalar], *labels: Label | Span | None) -> Scalar:
    """The value of ``dim`` at a site.

    Raises:
        SurgeryError: S243 if it has none there.

    """
    known = ", ".join(f"{k} = {sizes[k]}" for k in sorted(dim.names()) if k in sizes)
    with having_value(known, *labels):
        value = dim.value(sizes)
        if not is_sound(value):
            raise OverflowError("it is too large")
    return value


@contextmanager
def having_value(sizes: str, *labels: Label | Span | None) -> Generator[None]:
    """Makes an error of numbers that are none: a division by zero, a root of a negative number."""
    try:
        yield
    except (ArithmeticError, ValueError) as problem:
        here = f"at this site ({sizes})" if sizes else "at this site"
        raise error("S243", f"this is no number {here}: {problem}", *labels) from None


@contextmanager
def followed(span: Span | None) -> Generator[None]:
    """Makes an error of what nests deeper than it can be followed."""
    try:
        yield
    except RecursionError:
        raise _too_deep(span) from None


def _too_deep(span: Span | None) -> SurgeryError:
    return error(
        "S241",
        "this is nested too deeply",
        span,
        help="rules cannot contain loops or recursion",
    )


class Depth:
    """Counts how deep methods and blocks run in one another, and how many run in all."""

    _DEEPEST = 64
    _MOST = 1000

    def __init__(self) -> None:
        self.now = 0
        self.all = 0

    @contextmanager
    def one_more(self, span: Span | None) -> Generator[None]:
        """One runs inside.

        Raises:
            SurgeryError: S241 if too many do.

        """
        self.now += 1
        self.all += 1
        try:
            if self.now > self._DEEPEST or self.all > self._MOST:
                raise _too_deep(span)
            yield
        finally:
            self.now -= 1
