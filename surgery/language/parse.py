"""Text to syntax tree, or every error that the text has."""

from __future__ import annotations

import re

from surgery.language.checks import check
from surgery.language.diagnostics import Diagnostic, SurgeryError
from surgery.language.lalr import RefusedError, UnreadableError, grammar
from surgery.language.recovery import find_errors
from surgery.language.source import Source
from surgery.language.syntax import Comment, File

_QUOTED_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`\n]*`|#[^\n]*')


def parse(text: str | Source, name: str = "<spec>") -> File:
    """The syntax tree of ``text``; a :class:`SurgeryError` holds all that is wrong with it."""
    source = Source(name, text) if isinstance(text, str) else text
    running = grammar()
    running.builder.begin(source)
    try:
        items = running.parse(source.text)
        problems: list[Diagnostic] = list(running.builder.problems)
        problems += check(items)
    except (RefusedError, UnreadableError):
        raise SurgeryError(find_errors(source)) from None
    if problems:
        raise SurgeryError(sorted(problems, key=lambda d: d.labels[0].span.start))
    return File(items, source, comments(source.text))


def comments(text: str) -> tuple[Comment, ...]:
    """Every `# …` of ``text``, without the sign and the blanks around."""
    if "#" not in text:
        return ()
    return tuple(
        Comment(found[0][1:].strip(), found.start())
        for found in _QUOTED_OR_COMMENT.finditer(text)
        if found[0].startswith("#")
    )
