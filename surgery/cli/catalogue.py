"""`methods`: what the language can graft, as its rules tell it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.arguments import Json
from surgery.cli.commands import READING, add
from surgery.cli.screen import show, show_json

if TYPE_CHECKING:
    from surgery.reports.claims import Claims
    from surgery.rules.library import Definition


def register(application: typer.Typer) -> None:
    """Add the command with its examples."""
    add(application, READING, methods, "methods", "methods lora", "methods unipelt")


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A method, verb, block or recipe.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in methods, or describe NAME.

    Verbs, blocks and recipes are listed, too.
    """
    from surgery.planning.spec import recipes
    from surgery.reports.claims import claims_of
    from surgery.rules.library import prelude

    known = prelude()
    specs = {n: f.source.text for n, f in recipes().items()}
    if name is None:
        found = [claims_of(d) for d in map(known.find, sorted(known.names())) if d]
        told = [{"name": n, "kind": "recipe", "spec": text} for n, text in specs.items()]
        if as_json:
            show_json([*(c.as_dict() for c in found), *told])
        else:
            show(_list(found, specs))
        return
    if name in specs:
        text = specs[name]
        show_json({"name": name, "kind": "recipe", "spec": text}) if as_json else show(
            text.rstrip()
        )
        return
    definition = _definition(name)
    claims = claims_of(definition)
    if as_json:
        show_json(claims.as_dict() | {"rule": definition.syntax.span.text})
    else:
        show("\n".join(_about(claims, definition)))


def _definition(name: str) -> Definition:
    from surgery.rules.library import Scope, prelude

    return Scope(prelude=prelude()).require(name, None)


def _list(found: list[Claims], specs: dict[str, str]) -> str:
    sections: list[str] = []
    for kind in ("method", "verb", "block"):
        rows = [line for c in found if c.kind == kind for line in _row(_called(c), _first(c.doc))]
        if rows:
            sections.append("\n".join([f"{kind}s", *rows]))
    rows = [line for n, text in specs.items() for line in _row(n, _first(_heading(text)))]
    sections.append("\n".join(["recipes", *rows]))
    return "\n\n".join([*sections, "`surgery methods NAME` shows one in detail."])


_NAMES = 26
"""Columns of the names in a list; a longer one has a line of its own."""


def _row(name: str, said: str) -> list[str]:
    """One entry of a list, as wide as the terminal and at most as wide as lines are read well."""
    width = max(_NAMES + 20, min(shutil.get_terminal_size((100, 24)).columns, 100))
    lines = textwrap.wrap(said, width - _NAMES) or [""]
    lines = [f"{'':{_NAMES}}{line}".rstrip() for line in lines]
    first = f"  {name}"
    if len(first) + 2 > _NAMES:
        return [first, *lines]
    return [first.ljust(_NAMES) + lines[0][_NAMES:], *lines[1:]]


def _heading(text: str) -> str:
    """The comment that a recipe begins with."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def _called(c: Claims) -> str:
    """The name with those of its arguments; a verb's first is what it is given."""
    names = [p.partition(" =")[0].partition(":")[0] for p in c.arguments.split(", ") if p]
    return f"{c.name}({', '.join(names)})" if names else c.name


def _first(doc: str | None) -> str:
    sentence, stop, _ = f"{' '.join((doc or '').split())} ".partition(". ")
    return sentence + ("." if stop else "")


def _about(c: Claims, definition: Definition) -> Iterator[str]:
    from surgery.reports.figures import aligned
    from surgery.rules.shapes import show_shape

    yield f"{c.kind} {c.name}   {c.source}"
    if c.doc:
        yield f"\n{c.doc}"
    yield f"\n{definition.syntax.span.text}\n"
    rows = [("computes", c.formula), ("at init", c.starts)]
    rows += [(k, v) for k, v in (c.merge or {}).items()]
    if c.merge is None:
        rows.append(("merge", c.merges))
    for p in c.parameters:
        marks = ["frozen"] * p.frozen + ([p.shared] if p.shared else [])
        rows.append(
            (f"param {p.name}", f"{show_shape(p.shape)} {p.init} {', '.join(marks)}".rstrip())
        )
    rows += [("elements", c.elements), ("FLOPs", f"+{c.flops} per token")]
    rows += [("requires", condition) for condition in c.requires]
    yield from aligned(rows)
