"""What an expression of the language can stand for while a rule is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
        if self.operator == "and":
            return all(p.holds(sizes) for p in self.parts if isinstance(p, Condition))
        if self.operator == "or":
            return any(p.holds(sizes) for p in self.parts if isinstance(p, Condition))
        if self.operator == "not":
            return not any(p.holds(sizes) for p in self.parts if isinstance(p, Condition))
        left, right = (p.value(sizes) for p in self.parts if isinstance(p, Dim))
        return _COMPARE[self.operator](left, right)

    def names(self) -> set[str]:
        return {n for p in self.parts for n in p.names()}


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
