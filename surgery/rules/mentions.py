"""The names that a definition mentions: in its body, and in the defaults of its parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from surgery.language import syntax
from surgery.language.source import Span

Mention = tuple[str, Span, bool]
"""A name, where it stands, and whether it is called."""


def in_body(node: syntax.Method | syntax.Block) -> Iterator[Mention]:
    """Every name that stands for something in the steps of ``node``."""
    waiting: list[syntax.Expression] = []
    for step in node.body:
        match step:
            case syntax.Apply(application=inner):
                applied: syntax.Application | None = inner
                while applied is not None:
                    yield applied.name, applied.name_span, True
                    waiting += (a.value for a in applied.arguments)
                    applied = applied.operand
            case syntax.Draw():
                fixed = [] if step.otherwise is None else [step.otherwise]
                waiting += (*(step.dims or ()), step.distribution, *fixed)
            case syntax.Tune():
                waiting += (*step.params, *(s.value for s in step.settings))
            case syntax.After():
                waiting += [] if step.where is None else [step.where]
                waiting += (inner.value for inner in step.body)
            case (
                syntax.Let() | syntax.Unpack() | syntax.Assign() | syntax.Return() | syntax.Charge()
            ):
                waiting.append(step.value)
            case syntax.Param():
                waiting += (*step.dims, step.init)
            case syntax.Require():
                waiting.append(step.condition)
            case _:
                pass
    yield from in_expressions(waiting)


def in_defaults(node: syntax.Method | syntax.Block) -> Iterator[Mention]:
    """Every name that stands for something in the defaults of ``node``."""
    return in_expressions(p.default for p in node.parameters if p.default)


def in_expressions(expressions: Iterable[syntax.Expression]) -> Iterator[Mention]:
    """Every name in ``expressions``."""
    waiting = list(expressions)
    while waiting:
        match waiting.pop():
            case syntax.Name(name=name, span=span):
                yield name, span, False
            case syntax.Call() as call:
                yield call.function, call.function_span, True
                waiting += (a.value for a in call.arguments)
            case syntax.Unary(operand=operand):
                waiting.append(operand)
            case syntax.NamedDim(size=size):
                waiting.append(size)
            case syntax.Binary(left=left, right=right):
                waiting += (left, right)
            case _:
                pass


def useful(node: syntax.Method | syntax.Block, given: Collection[str]) -> set[str]:
    """The parameters that matter where those in ``given`` do not take their defaults."""
    known = {p.name: p for p in node.parameters}
    waiting, found = {name for name, _, _ in in_body(node)}, set[str]()
    while waiting:
        name = waiting.pop()
        if name not in known or name in found:
            continue
        found.add(name)
        default = known[name].default
        if name not in given and default is not None:
            waiting |= names_in(default)
    return found


def names_in(expression: syntax.Expression) -> set[str]:
    """The names that ``expression`` mentions."""
    return {name for name, _, _ in in_expressions((expression,))}
