"""What an expression of the language can stand for while a rule is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from surgery.language import syntax
from surgery.language.source import Span
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import Expression
from surgery.rules.library import Definition
from surgery.rules.primitives import Primitive


@dataclass(frozen=True, eq=False)
class Closure:
    """A method or block with its arguments. ``path`` prefixes its params' names."""

    definition: Definition
    arguments: Mapping[str, Value]
    span: Span
    path: str = ""
    origins: Mapping[str, tuple[Span, ...]] = field(default_factory=dict[str, tuple[Span, ...]])
    """Where each argument was written: in a spec, through verbs and `let`s."""

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many methods and blocks this is of, and how deep they nest."""
        inner = [a.extent for a in self.arguments.values() if isinstance(a, Closure)]
        return 1 + sum(size for size, _ in inner), 1 + max((deep for _, deep in inner), default=0)

    @property
    def is_block(self) -> bool:
        return isinstance(self.definition.syntax, syntax.Block)

    @property
    def kind(self) -> str:
        return "block" if self.is_block else "method"


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for any block or method while a verb is checked on its own."""

    kind: str
    name: str


@dataclass(frozen=True, eq=False)
class HostModule:
    """A module of the model that a rule may call: the norm after a residual sum."""

    name: str
    present: bool


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


@dataclass(frozen=True)
class Init:
    """How a param starts: a distribution with its arguments, or a computed value."""

    distribution: str | None
    arguments: tuple[tuple[str, Dim | str], ...] = ()
    value: Expression | None = None

    def __str__(self) -> str:
        if self.value is not None:
            return str(self.value)
        inside = ", ".join(
            f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}"
            for k, v in self.arguments
            if v != ""
        )
        return f"{self.distribution}({inside})" if inside else str(self.distribution)


@dataclass(frozen=True)
class Declaration:
    """A tensor a rule adds: `param frozen shared A[r, m] ~ init`; ``shared`` as in the syntax."""

    name: str
    shape: tuple[Dim, ...]
    init: Init
    frozen: bool
    shared: syntax.Sharing | None
    span: Span = field(compare=False, repr=False)
    origins: tuple[Span, ...] = field(default=(), compare=False, repr=False)
    """Where the numbers in its shape were written."""

    def shape_at(self, sizes: Mapping[str, Scalar]) -> tuple[int, ...]:
        """Its shape at a site of these sizes."""
        return tuple(int(dim.value(sizes)) for dim in self.shape)


Value = Dim | Expression | Primitive | Closure | Opaque | HostModule | Condition | str


def describe(value: Value) -> str:
    """What kind of thing a value is, for messages."""
    match value:
        case Dim():
            return "a number"
        case Expression():
            return "a tensor"
        case Primitive():
            return f"the function `{value.name}`"
        case Closure():
            return f"the {value.kind} `{value.definition.name}`"
        case Opaque() | HostModule():
            return f"`{value.name}`"
        case Condition():
            return "a condition"
        case str():
            return "a text"
