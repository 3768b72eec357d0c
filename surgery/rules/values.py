"""What an expression of the language can stand for while a rule is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from surgery.language import syntax
from surgery.language.source import Span
from surgery.rules.conditions import Condition
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import Expression
from surgery.rules.library import Definition
from surgery.rules.primitive import Primitive
from surgery.rules.trained import CLOCK


@dataclass(frozen=True, eq=False)
class Closure:
    """A method or block with its arguments.

    ``path`` prefixes its params' names, once it has a place among those that take it.
    """

    definition: Definition
    arguments: Mapping[str, Value]
    span: Span
    path: str | None = None
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
    state: bool = False
    """Whether it is a buffer, which no optimizer has."""
    drawn: bool = False
    """Whether it is drawn anew for each step."""

    def shape_at(self, sizes: Mapping[str, Scalar]) -> tuple[int, ...]:
        """Its shape at a site of these sizes."""
        return tuple(int(dim.value(sizes)) for dim in self.shape)


def is_clock(declaration: Declaration) -> bool:
    """Whether it counts the steps of its method."""
    return declaration.state and declaration.name.rpartition(".")[2] == CLOCK


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
