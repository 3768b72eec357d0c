"""What must hold of numbers and dims: comparisons, decided here or at a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from surgery.language.source import Span
from surgery.rules.dims import Dim, Scalar


@dataclass(frozen=True)
class Condition:
    """A comparison or a combination of comparisons, decided when the sizes are known."""

    operator: str
    parts: tuple[Condition | Dim, ...]

    def holds(self, sizes: Mapping[str, Scalar]) -> bool:
        """Whether it holds at ``sizes``, which give all of its names."""
        return bool(self._decide(lambda dim: dim.value(sizes)))

    @cached_property
    def known(self) -> bool | None:
        """Whether it holds at every site or at none; None where that is for a site to decide."""
        return self._decide(lambda dim: dim.number)

    def _decide(self, value: Callable[[Dim], Scalar | None]) -> bool | None:
        inner = [p._decide(value) for p in self.parts if isinstance(p, Condition)]
        match self.operator:
            case "and":
                return False if False in inner else (None if None in inner else True)
            case "or":
                return True if True in inner else (None if None in inner else False)
            case "not":
                return None if inner[0] is None else not inner[0]
            case _:
                left, right = (value(p) for p in self.parts if isinstance(p, Dim))
                if left is None or right is None:
                    return None
                return _COMPARE[self.operator](left, right)

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many parts this has, written out, and how deep they nest."""
        inner = [p.extent for p in self.parts]
        return 1 + sum(size for size, _ in inner), 1 + max((deep for _, deep in inner), default=0)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(n for p in self.parts for n in p.names())

    def names(self) -> frozenset[str]:
        return self._names

    def shown(self, sizes: Mapping[str, Scalar] | None = None) -> str:
        """The comparison that does not hold at ``sizes``, or anywhere, with both of its sides."""
        for part in self.parts:
            if isinstance(part, Condition):
                false = part.known is False if sizes is None else not part.holds(sizes)
                if self.operator == "and" and false:
                    return part.shown(sizes)
        if self.operator not in _COMPARE:
            return ""
        sides = [p if sizes is None else p.value(sizes) for p in self.parts if isinstance(p, Dim)]
        return f" {self.operator} ".join(map(str, sides))


@dataclass(frozen=True)
class Requirement:
    """What must hold at a site: a rule's `require`, or what follows from how a value is used.

    ``span`` is where the rule needs it, ``origins`` are where the values were written. What is
    derived says so in ``words``, of a ``value``.
    """

    condition: Condition
    span: Span
    origins: tuple[Span, ...] = ()
    words: str | None = None
    value: Dim | None = None


_COMPARE: dict[str, Callable[[Scalar, Scalar], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
