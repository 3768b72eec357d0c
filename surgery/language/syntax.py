"""The syntax tree: what a `.peft` file says, before anything is looked up.

Every node knows its span. Spans do not count in comparisons, so two texts that say the same
thing give equal trees, whatever their layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from surgery.language.source import SourceText, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """``depth`` is how deep expressions, verbs and groups stand in one another."""

    span: Span = field(compare=False, repr=False)
    depth: int = field(compare=False, repr=False, default=0)


# Expressions


@dataclass(frozen=True, slots=True)
class Number(Node):
    value: int | float


@dataclass(frozen=True, slots=True)
class Text(Node):
    value: str


@dataclass(frozen=True, slots=True)
class Name(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Star(Node):
    """The `*` of `x[*, m]`: any number of leading dims."""


@dataclass(frozen=True, slots=True)
class NamedDim(Node):
    """The `d = c` of `param P[c, d = c]`: a dim with a name of its own, as long as ``size``."""

    name: str
    size: Expression
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Unary(Node):
    operator: Literal["-", "not"]
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary(Node):
    operator: Literal["+", "-", "*", "/", "@", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
    left: Expression
    right: Expression

    # A long sum nests to the left as deep as it is long: these go along it in a loop.

    def __eq__(self, other: object) -> bool:
        return type(other) is Binary and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        first, run = spine(self)
        text = repr(first)
        for node in run:
            text = f"Binary(operator={node.operator!r}, left={text}, right={node.right!r})"
        return text

    def _parts(self) -> tuple[Expression, tuple[tuple[str, Expression], ...]]:
        first, run = spine(self)
        return first, tuple((node.operator, node.right) for node in run)


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """`value`, or `name = value`."""

    name: str | None
    value: Expression


@dataclass(frozen=True, slots=True)
class Call(Node):
    function: str
    arguments: tuple[Argument, ...]
    function_span: Span = field(compare=False, repr=False, kw_only=True)


Expression = Number | Text | Name | Star | NamedDim | Unary | Binary | Call


# Selectors


@dataclass(frozen=True, slots=True)
class Path(Node):
    """A glob between backticks, right-anchored on whole components."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Role(Node):
    """A bare, possibly dotted, name: `q`, `attention.cross`."""

    name: str


@dataclass(frozen=True, slots=True)
class Class(Node):
    """A capitalised name: a module class."""

    name: str


@dataclass(frozen=True, slots=True)
class All(Node):
    """`all`: every module, or with `freeze` and `train` every parameter."""


@dataclass(frozen=True, slots=True)
class Slice(Node):
    """`[start:stop:step]` as in Python; a bound with a point is a share of all there are."""

    start: int | float | None
    stop: int | float | None
    step: int | None


@dataclass(frozen=True, slots=True)
class Index(Node):
    """`[index]`, negative from the end."""

    index: int


@dataclass(frozen=True, slots=True)
class Sliced(Node):
    item: Path | Role | Class | All | Group
    subscript: Slice | Index


@dataclass(frozen=True, slots=True)
class Group(Node):
    """A selector in parentheses."""

    selector: Selector


@dataclass(frozen=True, slots=True)
class Union(Node):
    """`a | b | c`, in the order written."""

    parts: tuple[Path | Role | Class | All | Sliced | Group, ...]


@dataclass(frozen=True, slots=True)
class Selector(Node):
    """`UNION [of UNION] [in UNION] [where TEST] [except UNION] [expect N]`.

    With ``of``, or where the union names them, what is selected are params that methods add.
    """

    union: Union
    within: Union | None = None
    where: Expression | None = None
    exceptions: Union | None = None
    expect: int | None = None
    of: Union | None = None


# Statements of a spec


@dataclass(frozen=True, slots=True)
class Application(Node):
    """`name(arguments)` or `name(arguments) operand`: `gated sequential adapter(48)`.

    The word `apply`, being the identity, leaves no trace here.
    """

    name: str
    arguments: tuple[Argument, ...] = ()
    operand: Application | None = None
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class On(Node):
    """`on SELECTOR VERB… METHOD(args) [as NAME]`."""

    selector: Selector
    application: Application
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Freeze(Node):
    selector: Selector


@dataclass(frozen=True, slots=True)
class Train(Node):
    selector: Selector


@dataclass(frozen=True, slots=True)
class Setting(Node):
    """`lr * 16` or `weight_decay = 0`: an option of the optimizer, changed or given."""

    option: str
    operator: Literal["*", "="]
    value: Expression
    option_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Optimize(Node):
    """`optimize B of lora with lr * 16, weight_decay = 0`."""

    selector: Selector
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Penalty(Node):
    """`penalty EXPRESSION of lora`: one number a site, added to the loss."""

    value: Expression
    selector: Selector


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let name = value`, in a spec (a constant) or in a rule's body (an abbreviation)."""

    name: str
    value: Expression
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Unpack(Node):
    """`let U, s, V = svd(W, r)` in a rule's body: names for several values."""

    names: tuple[Name, ...]
    value: Expression


@dataclass(frozen=True, slots=True)
class Use(Node):
    """`use "file.peft"` or `use "file.peft" (name, name)`."""

    path: str
    names: tuple[str, ...] | None


# Definitions


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    """A formal parameter: `r = 8`, `f: block`, `m: method`."""

    name: str
    kind: Literal["value", "block", "method"] = "value"
    default: Expression | None = None


@dataclass(frozen=True, slots=True)
class Operand(Node):
    """`x[*, m]` in a pattern; `b?` is absent at some sites. ``dims`` is None if none are named."""

    name: str
    dims: tuple[Expression, ...] | None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Match(Node):
    """`match y[*, n] = linear(x[*, m], W[n, m], b?)`."""

    result: Operand
    operator: str
    operands: tuple[Operand, ...]
    operator_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Require(Node):
    condition: Expression


Sharing = Literal["shared", "stack", "layer"]


@dataclass(frozen=True, slots=True)
class Param(Node):
    """`param [frozen] [shared] A[r, m] ~ distribution(...)`, or `= value` for a computed start.

    ``random`` tells `~` from `=`; ``shared`` is the word that says who shares it: all sites
    (`shared`), those in one stack of layers (`stack`), or those in one layer (`layer`). A ``state``
    is no parameter but a buffer: what happens after a step of the optimizer changes it.
    """

    name: str
    dims: tuple[Expression, ...]
    init: Expression
    random: bool
    frozen: bool = False
    shared: Sharing | None = None
    state: bool = False
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Draw(Node):
    """`draw [shared] b[k] ~ integers(1, r) else r`: drawn once a step in training, else fixed."""

    name: str
    dims: tuple[Expression, ...] | None
    distribution: Expression
    otherwise: Expression | None = None
    shared: Sharing | None = None
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """`y = value`; `y += e` is kept as written in ``operator`` (one of `=`, `+=`, `-=`, `*=`)."""

    target: str
    operator: Literal["=", "+=", "-=", "*="]
    value: Expression
    target_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Apply(Node):
    """`apply m(gate = …)` inside a method's body."""

    application: Application


@dataclass(frozen=True, slots=True)
class Tune(Node):
    """`optimize A | B with lr * 16`, of params of the rule itself."""

    params: tuple[Name, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Charge(Node):
    """`penalty EXPRESSION` of a rule: one number a site, added to the loss."""

    value: Expression


@dataclass(frozen=True, slots=True)
class After(Node):
    """`after step where TEST { s = …  let … }`: what follows each step of the optimizer."""

    event: str
    where: Expression | None
    body: tuple[Let | Assign, ...]
    event_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Return(Node):
    value: Expression


Step = (
    Match | Require | Param | Draw | Let | Unpack | Assign | Apply | Tune | Charge | After | Return
)


@dataclass(frozen=True, slots=True)
class Method(Node):
    """`method name(parameters) { "doc" steps }`."""

    name: str
    parameters: tuple[Parameter, ...]
    doc: str | None
    body: tuple[Step, ...]
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Block(Node):
    """`block name(parameters) of h[*, d] { "doc" steps return e }`."""

    name: str
    parameters: tuple[Parameter, ...]
    input: Operand
    doc: str | None
    body: tuple[Step, ...]
    name_span: Span = field(compare=False, repr=False, kw_only=True)


Item = On | Freeze | Train | Optimize | Penalty | Let | Use | Method | Block


@dataclass(frozen=True, slots=True)
class Comment:
    """`# text`, with the offset it starts at."""

    text: str
    offset: int


@dataclass(frozen=True, slots=True)
class File:
    """One parsed text."""

    items: tuple[Item, ...]
    source: SourceText = field(compare=False, repr=False)
    comments: tuple[Comment, ...] = field(compare=False, default=())


def mentioned(expression: Expression) -> set[str]:
    """The names that occur in ``expression``, other than those of functions."""
    return {name for name, _ in mentions(expression)}


def mentions(expression: Expression) -> Iterator[tuple[str, Span]]:
    """Each name in ``expression``, other than those of functions, with its place."""
    waiting: list[Expression] = [expression]
    while waiting:
        match waiting.pop():
            case Name(name=name, span=span):
                yield name, span
            case Unary(operand=operand):
                waiting.append(operand)
            case NamedDim(size=size):
                waiting.append(size)
            case Binary(left=left, right=right):
                waiting += (right, left)
            case Call(arguments=arguments):
                waiting += (argument.value for argument in reversed(arguments))
            case _:
                pass


def spine(expression: Binary) -> tuple[Expression, list[Binary]]:
    """The leftmost operand of `a + b + c`, and what is done to it, innermost first.

    A long sum nests to the left as deep as it is long.
    """
    run: list[Binary] = []
    first: Expression = expression
    while isinstance(first, Binary):
        run.append(first)
        first = first.left
    return first, run[::-1]
