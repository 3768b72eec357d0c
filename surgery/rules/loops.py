"""Definitions that use themselves, found by the names in their bodies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.rules.library import Definition
from surgery.rules.mentions import in_body, in_defaults
from surgery.rules.primitives import PRIMITIVES

Use = tuple[Definition, Span]


def refuse_loops(definition: Definition) -> None:
    """Check that running ``definition`` comes to an end.

    Raises:
        SurgeryError: S241 if it uses itself, alone or through others.

    """
    loop = _loop(definition)
    if loop is None:
        return
    names = [d.name for d, _ in loop]
    through = f", through {' and '.join(f'`{n}`' for n in names[:-1])}" if names[1:] else ""
    raise error(
        "S241",
        f"`{names[-1]}` uses itself{through}",
        loop[-1][1],
        Label(loop[-1][0].syntax.name_span, "defined here"),
        help="rules cannot contain loops or recursion",
    )


@lru_cache(maxsize=1024)
def _loop(start: Definition) -> tuple[Use, ...] | None:
    """The uses that lead from a definition below ``start`` back to it."""
    trail: list[tuple[Definition, Iterator[Use]]] = [(start, iter(_uses(start)))]
    uses: list[Use] = []
    done: set[Definition] = set()
    while trail:
        found = next(trail[-1][1], None)
        if found is None:
            done.add(trail.pop()[0])
            uses = uses[:-1]
            continue
        target = found[0]
        on_trail = [d for d, _ in trail]
        if target in on_trail:
            return (*uses[on_trail.index(target) :], found)
        if target not in done:
            trail.append((target, iter(_uses(target))))
            uses.append(found)
    return None


def _uses(definition: Definition) -> tuple[Use, ...]:
    """The definitions that the body and the defaults of one name."""
    own = set(_own_names(definition.syntax))
    found: list[Use] = []
    for name, span, called in (*in_body(definition.syntax), *in_defaults(definition.syntax)):
        if name in own or (name in PRIMITIVES and not called):
            continue
        target = definition.scope.find(name)
        if target is not None:
            found.append((target, span))
    return tuple(found)


def _own_names(node: syntax.Method | syntax.Block) -> Iterator[str]:
    yield from (p.name for p in node.parameters)
    if isinstance(node, syntax.Block):
        yield from _bound(node.input)
    for step in node.body:
        match step:
            case syntax.Match():
                for operand in (step.result, *step.operands):
                    yield from _bound(operand)
            case syntax.Param():
                yield step.name
                yield from (d.name for d in step.dims if isinstance(d, syntax.NamedDim))
            case syntax.Unpack():
                yield from (name.name for name in step.names)
            case syntax.Let():
                yield step.name
            case _:
                pass


def _bound(operand: syntax.Operand) -> Iterator[str]:
    yield operand.name
    yield from (d.name for d in operand.dims or () if isinstance(d, syntax.Name))
