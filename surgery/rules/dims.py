"""Sizes known by name: polynomials over dims such as `n`, `m` and `r`.

Rules are read before any model is seen, so `B[n, r] @ A[r, m]` is checked with names. A site gives
the names their values; :meth:`Dim.value` then evaluates what the rule worked out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

Scalar = int | float
_LARGEST_DIVIDED = 10**10
"""Its divisors are tried up to its root."""


@lru_cache(maxsize=4096)
def _divisor(number: Scalar, limit: Scalar) -> Scalar:
    """The largest divisor of ``number`` that is at most ``limit``; 0 if there is none."""
    if number != int(number) or abs(number) > _LARGEST_DIVIDED:
        raise ValueError(f"`divisor` is of whole numbers up to {_LARGEST_DIVIDED:g}")
    number, highest = abs(int(number)), int(min(limit, _LARGEST_DIVIDED))
    if number == 0 or highest >= number:
        return max(0, number or highest)
    root = math.isqrt(number)
    small = min(highest, root)
    large = (number // k for k in range(1, root + 1) if number % k == 0 and number // k <= highest)
    if highest > root and (found := next(large, 0)):
        return found
    return next((k for k in range(small, 0, -1) if number % k == 0), 0)


def _quotient(number: Scalar, by: Scalar) -> Scalar:
    return number // by if number % by == 0 else number / by


def _between(start: Scalar, end: Scalar, step: Scalar) -> float:
    """How far ``step`` is on the way from ``start`` to ``end``: from 0 to 1."""
    if step <= start:
        return 0.0
    return 1.0 if step >= end else (step - start) / (end - start)


def _cubic(first: Scalar, last: Scalar, start: Scalar, end: Scalar, step: Scalar) -> Scalar:
    left = 1 - _between(start, end, step)
    return last if left == 0 else (first - last) * left**3 + last


def _ramp(first: Scalar, last: Scalar, start: Scalar, end: Scalar, step: Scalar) -> Scalar:
    return first + (last - first) * _between(start, end, step)


def _cosine(first: Scalar, last: Scalar, start: Scalar, end: Scalar, step: Scalar) -> Scalar:
    return last + (first - last) * (1 + math.cos(math.pi * _between(start, end, step))) / 2


STEP = "step()"
"""The name of how many steps the optimizer has made; no dim has it."""
SCHEDULES: dict[str, Callable[..., Scalar]] = {"cubic": _cubic, "ramp": _ramp, "cosine": _cosine}
"""Functions of the step, written without it: `cubic(12, 8, 200, 1000)` from 12 to 8 between these."""
FUNCTIONS: dict[str, Callable[..., Scalar]] = {
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "divisor": _divisor,
    "quotient": _quotient,
    "remainder": operator.mod,
    **SCHEDULES,
}
ARITY = {
    "sqrt": 1,
    "floor": 1,
    "divisor": 2,
    "quotient": 2,
    "remainder": 2,
    **dict.fromkeys(SCHEDULES, 4),
}
"""How many arguments a function takes; others take two or more."""


@dataclass(frozen=True)
class Atom:
    """A named dim, or a function of dims that has no simpler form (``min(n, m)``)."""

    name: str
    arguments: tuple[Dim, ...] = ()

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.arguments))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many parts this has, written out, and how deep they nest."""
        inner = [a.extent for a in self.arguments]
        return 1 + sum(size for size, _ in inner), 1 + max((deep for _, deep in inner), default=0)

    def value(self, sizes: Mapping[str, Scalar]) -> Scalar:
        if not self.arguments:
            return sizes[self.name]
        return FUNCTIONS[self.name](*(a.value(sizes) for a in self.arguments))

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}({', '.join(map(str, self.arguments))})"


Monomial = tuple[tuple[Atom, int], ...]


@dataclass(frozen=True)
class Dim:
    """A polynomial: ``(monomial, coefficient)`` terms in normal form; also every scalar of a rule.

    As a dim of a tensor it has the ``label`` that a rule calls it by there. Two dims of one size may
    have two: `P[c, d = c]`. What is computed of a dim has none.
    """

    terms: tuple[tuple[Monomial, Scalar], ...]
    label: str = field(default="", compare=False, repr=False)

    @staticmethod
    def of(value: Scalar | Dim) -> Dim:
        if isinstance(value, Dim):
            return value
        return Dim((((), value),)) if value else Dim(())

    @staticmethod
    def named(name: str, *arguments: Dim) -> Dim:
        """The dim ``name``, or the function ``name`` of ``arguments``, evaluated if they are known."""
        if not arguments:
            return _plain(name)
        known = [a.number for a in arguments]
        if all(k is not None for k in known):
            return Dim.of(FUNCTIONS[name](*known))
        return Dim(((((Atom(name, arguments), 1),), 1),))

    def called(self, label: str) -> Dim:
        """The same size with a ``label``; an empty one leaves what there is."""
        return replace(self, label=label) if label and label != self.label else self

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many parts this has, written out, and how deep they nest."""
        atoms = [atom.extent for monomial, _ in self.terms for atom, _ in monomial]
        return (
            len(self.terms) + sum(size for size, _ in atoms),
            max((deep for _, deep in atoms), default=0),
        )

    @property
    def number(self) -> Scalar | None:
        """The value of a constant, else None."""
        if not self.terms:
            return 0
        return self.terms[0][1] if self.terms[0][0] == () and len(self.terms) == 1 else None

    @property
    def atom(self) -> Atom | None:
        """The atom of a dim that is just one, else None."""
        if len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1:
            atom, power = self.terms[0][0][0]
            return atom if power == 1 else None
        return None

    def value(self, sizes: Mapping[str, Scalar]) -> Scalar:
        """Evaluate at concrete sizes; whole numbers come out as ``int``."""
        total: Scalar = 0
        for monomial, coefficient in self.terms:
            product: Scalar = coefficient
            for atom, power in monomial:
                base = atom.value(sizes)
                product = product * base**power if power > 0 else product / base**-power
            total += product
        return int(total) if isinstance(total, float) and total.is_integer() else total

    def substitute(self, values: Mapping[str, Dim]) -> Dim:
        """Replace named atoms by other dims."""
        total = Dim(())
        for monomial, coefficient in self.terms:
            product = Dim.of(coefficient)
            for atom, power in monomial:
                if atom.arguments:
                    base = Dim.named(atom.name, *(a.substitute(values) for a in atom.arguments))
                else:
                    base = values.get(atom.name) or Dim.named(atom.name)
                for _ in range(abs(power)):
                    product = product * base if power > 0 else product / base
            total = total + product
        return total

    def names(self) -> set[str]:
        """The named atoms this depends on."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom, _ in monomial:
                found |= {n for a in atom.arguments for n in a.names()} or {atom.name}
        return found

    @staticmethod
    def _collect(terms: list[tuple[Monomial, Scalar]]) -> Dim:
        total: dict[Monomial, Scalar] = {}
        for monomial, coefficient in terms:
            total[monomial] = total.get(monomial, 0) + coefficient
        return Dim(tuple(sorted(((k, v) for k, v in total.items() if v), key=lambda t: str(t[0]))))

    def __add__(self, other: Scalar | Dim) -> Dim:
        return Dim._collect([*self.terms, *Dim.of(other).terms])

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Scalar | Dim) -> Dim:
        return self + -Dim.of(other)

    def __mul__(self, other: Scalar | Dim) -> Dim:
        return Dim._collect(
            [(_times(a, b, 1), x * y) for a, x in self.terms for b, y in Dim.of(other).terms]
        )

    def __truediv__(self, other: Scalar | Dim) -> Dim:
        other = Dim.of(other)
        if len(other.terms) != 1:
            if not other.terms:
                raise ZeroDivisionError
            if self == other:
                return Dim.of(1)
            return Dim.named("quotient", self, other)
        ((divisor, y),) = other.terms
        return Dim._collect([(_times(a, divisor, -1), _ratio(x, y)) for a, x in self.terms])

    def __mod__(self, other: Scalar | Dim) -> Dim:
        return Dim.named("remainder", self, Dim.of(other))

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return " + ".join(_term(m, c) for m, c in self.terms).replace("+ -", "- ") or "0"


@lru_cache(maxsize=4096)
def _plain(name: str) -> Dim:
    return Dim(((((Atom(name), 1),), 1),))


def _times(a: Monomial, b: Monomial, sign: int) -> Monomial:
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + sign * power
    return tuple(sorted(((k, p) for k, p in powers.items() if p), key=lambda t: str(t[0])))


def _ratio(x: Scalar, y: Scalar) -> Scalar:
    return x // y if isinstance(x, int) and isinstance(y, int) and x % y == 0 else x / y


def _term(monomial: Monomial, coefficient: Scalar) -> str:
    above = [f"{a}^{p}" if p > 1 else str(a) for a, p in monomial if p > 0]
    below = [f"{a}^{-p}" if p < -1 else str(a) for a, p in monomial if p < 0]
    if coefficient not in (1, -1) or not above:
        above.insert(0, f"{coefficient:g}" if isinstance(coefficient, float) else str(coefficient))
    elif coefficient == -1:
        above[0] = f"-{above[0]}"
    text = "·".join(above)
    return f"{text}/{'·'.join(below)}" if below else text
