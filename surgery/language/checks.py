"""What can be said against a file from its syntax tree alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from surgery.language.diagnostics import Diagnostic, Label
from surgery.language.source import Span
from surgery.language.syntax import (
    After,
    Apply,
    Block,
    Draw,
    Item,
    Let,
    Match,
    Method,
    Param,
    Return,
    Step,
    Unpack,
)

Named = tuple[str, Span]


def check(items: Iterable[Item]) -> Iterator[Diagnostic]:
    """Every objection to ``items``, in the order of the text."""
    names: list[Named] = []
    for item in items:
        match item:
            case Method():
                names.append((item.name, item.name_span))
                yield from _repeated("S113", "names two things here", _names(item))
                yield from _check_method(item)
            case Block():
                names.append((item.name, item.name_span))
                yield from _repeated("S113", "names two things here", _names(item))
                yield from _check_block(item)
            case Let():
                names.append((item.name, item.name_span))
            case _:
                pass
    yield from _repeated("S116", "is defined twice", names)


def _repeated(code: str, what: str, names: Iterable[Named]) -> Iterator[Diagnostic]:
    first: dict[str, Span] = {}
    for name, span in names:
        if name in first:
            labels = (Label(span, "again here"), Label(first[name], "first here"))
            yield Diagnostic(code, f"`{name}` {what}", labels)
        first.setdefault(name, span)


def _names(definition: Method | Block) -> Iterator[Named]:
    for parameter in definition.parameters:
        yield parameter.name, parameter.span
    if isinstance(definition, Block):
        yield definition.input.name, definition.input.span
    for step in definition.body:
        match step:
            case Match():
                for operand in (step.result, *step.operands):
                    yield operand.name, operand.span
            case Param() | Draw() | Let():
                yield step.name, step.name_span
            case Unpack():
                yield from ((name.name, name.span) for name in step.names)
            case After():
                for inner in step.body:
                    if isinstance(inner, Let):
                        yield inner.name, inner.name_span
            case _:
                pass


def _check_method(method: Method) -> Iterator[Diagnostic]:
    matches = [step for step in method.body if isinstance(step, Match)]
    if not matches:
        yield Diagnostic(
            "S114",
            f"the method `{method.name}` has no `match`",
            (Label(method.name_span),),
            "a method's body begins with a `match`: `match y = linear(x, W, b?)`",
        )
    elif method.body[0] is not matches[0]:
        yield Diagnostic(
            "S114",
            "a `match` comes first in its method",
            (Label(matches[0].span), Label(method.body[0].span, "this comes before it")),
        )
    for other in matches[1:]:
        yield Diagnostic(
            "S114",
            "a method has one `match`",
            (Label(other.span, "the second"), Label(matches[0].span, "the first")),
        )
    yield from _misplaced(method.body, (Return,), "a method changes what it matches: `y = …`")


def _check_block(block: Block) -> Iterator[Diagnostic]:
    returns = [step for step in block.body if isinstance(step, Return)]
    if not returns:
        yield Diagnostic(
            "S115",
            f"the block `{block.name}` returns nothing",
            (Label(block.name_span),),
            "a block's body ends with a `return`",
        )
    elif block.body[-1] is not returns[0]:
        after = block.body[block.body.index(returns[0]) + 1]
        labels = (Label(returns[0].span), Label(after.span, "this is never reached"))
        yield Diagnostic("S115", "a `return` comes last in its block", labels)
    help = f"a block computes with its input, `{block.input.name}`, and returns"
    yield from _misplaced(block.body, (Match, Apply), help)


def _misplaced(body: tuple[Step, ...], kinds: tuple[type, ...], help: str) -> Iterator[Diagnostic]:
    for step in body:
        if isinstance(step, kinds):
            word = type(step).__name__.lower()
            home = "block" if isinstance(step, Return) else "method"
            message = f"`{word}` belongs in the body of a {home}"
            yield Diagnostic("S122", message, (Label(step.span),), help)
