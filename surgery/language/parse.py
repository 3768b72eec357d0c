"""Text to syntax tree, or every error that the text has."""

from __future__ import annotations

import re

from surgery.language.checks import check
from surgery.language.diagnostics import Diagnostic, SurgeryError, error, first_of
from surgery.language.lalr import RefusedError, UnreadableError, grammar, make_token
from surgery.language.source import SourceText, Span
from surgery.language.syntax import Comment, File, Freeze, Selector

_DEEPEST = 100
"""Brackets in one another; more than are needed for expressions as deep as they may be."""

_LANDMARK = re.compile(r'"(?:[^"\\\r\n]|\\.)*"|`[^`\r\n]*`|#[^\r\n]*|[(){}\[\]]')
_HALF = re.compile("[\ud800-\udfff]")


def parse(text: str | SourceText, name: str = "<spec>") -> File:
    """The syntax tree of ``text``; a :class:`SurgeryError` holds all that is wrong with it."""
    source = SourceText(name, text) if isinstance(text, str) else text
    comments = _survey(source)
    running = grammar()
    running.builder.begin(source)
    try:
        items = running.parse(source.text)
    except (RefusedError, UnreadableError):
        # What finds and explains errors is imported where there are some.
        from surgery.language.recovery import read

        raise SurgeryError(read(source)[1]) from None
    problems: list[Diagnostic] = [*running.builder.problems, *check(items)]
    if problems:
        raise SurgeryError(first_of(sorted(problems, key=lambda d: d.labels[0].span.start)))
    return File(items, source, comments)


def parse_selector(text: str | SourceText, name: str = "<selector>") -> Selector:
    """The syntax tree of ``text``, which is one selector."""
    from surgery.language.recovery import read

    source = SourceText(name, text) if isinstance(text, str) else text
    _survey(source)
    everything = Span(source, 0, len(source.text))
    if not source.text.strip():
        raise error("S120", "this selector is empty", everything)
    lead = make_token("FREEZE", "freeze", 0)
    lead.end_pos = 0
    items, problems = read(source, lead)
    if problems:
        raise SurgeryError(problems)
    match items:
        case [Freeze(selector=selector)]:
            return selector
        case _:
            raise error("S101", "expected one selector, found statements", everything)


def _survey(source: SourceText) -> tuple[Comment, ...]:
    """The comments; an error where brackets nest so deep that no reader could follow, or where
    there is half of a character.
    """
    if found := _HALF.search(source.text):
        here = Span(source, found.start(), found.end())
        raise error("S102", "this is half of a character, a lone surrogate", here)
    comments: list[Comment] = []
    depth = 0
    for found in _LANDMARK.finditer(source.text):
        first = found[0][0]
        if first == "#":
            comments.append(Comment(found[0][1:].strip(), found.start()))
        elif first in "([{":
            depth += 1
            if depth > _DEEPEST:
                here = Span(source, found.start(), found.end())
                raise error("S123", f"this nests more than {_DEEPEST} brackets deep", here)
        elif first in ")]}":
            depth -= 1
    return tuple(comments)
