"""The specs that come with the package, by name; their `let`s are their arguments."""

from __future__ import annotations

import re

from surgery.language import syntax
from surgery.language.diagnostics import Label, SurgeryError, did_you_mean, error
from surgery.language.parse import parse
from surgery.language.resources import resource
from surgery.language.source import SourceText, Span
from surgery.language.words import RESERVED

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\)\s*)?", re.DOTALL)


def recipes() -> dict[str, syntax.File]:
    """The specs that come with the package, by name."""
    files = {p.stem: p for p in sorted(resource("rules").glob("*.peft"))}
    parsed = {
        name: parse(SourceText(f"rules/{path.name}", path.read_text(encoding="utf-8")))
        for name, path in files.items()
    }
    definitions = syntax.Method | syntax.Block | syntax.Let | syntax.Use
    return {n: f for n, f in parsed.items() if any(not isinstance(i, definitions) for i in f.items)}


def called(text: str) -> syntax.File | None:
    """The recipe that ``text`` calls, `unipelt` or `unipelt(r = 4)`; None if it is no such call.

    Raises:
        SurgeryError: S510 if there is no recipe of that name; S208 for arguments that it lacks.

    """
    found = _CALL.fullmatch(text)
    if found is None or found[1] in RESERVED.values():
        return None
    known = recipes()
    name = found[1]
    if name not in known:
        raise error(
            "S510",
            f"no recipe is named `{name}`",
            help=did_you_mean(name, known)
            or f"there are {', '.join(known)}; a spec is more than a word",
        )
    return known[name] if found[2] is None else _given(known[name], text)


def _given(file: syntax.File, text: str) -> syntax.File:
    """``file`` with other values for its `let`s."""
    source = SourceText("<spec>", f"on all apply {text}")
    (statement,) = parse(source).items
    assert isinstance(statement, syntax.On)
    application = statement.application
    lets = {i.name: i.value.span for i in file.items if isinstance(i, syntax.Let)}
    waiting = list(lets)
    given: dict[str, Span] = {}
    for argument in application.arguments:
        name = argument.name or (waiting[0] if waiting else "")
        if name not in waiting:
            raise _unknown(application.name, argument, given, lets)
        waiting.remove(name)
        given[name] = argument.value.span
    whole = file.source.text
    for name, place in sorted(lets.items(), key=lambda item: -item[1].start):
        if name in given:
            whole = f"{whole[: place.start]}{given[name].text}{whole[place.end :]}"
    return parse(SourceText(file.source.name, whole))


def _unknown(
    recipe: str, argument: syntax.Argument, given: dict[str, Span], lets: dict[str, Span]
) -> SurgeryError:
    name = argument.name
    if name in given:
        return error("S208", f"`{name}` is given twice", argument.span, Label(given[name], "first"))
    what = f"has no argument `{name}`" if name else f"takes {len(lets)} arguments"
    takes = f"it takes {', '.join(lets)}" if lets else "it takes none"
    hint = did_you_mean(name, lets) if name else None
    return error("S208", f"the recipe `{recipe}` {what}", argument.span, help=hint or takes)
