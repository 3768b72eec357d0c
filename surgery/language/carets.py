"""A line of a text as it is shown, with carets below the right columns of it."""

from __future__ import annotations

from unicodedata import category, east_asian_width

from surgery.language.source import Span

_WIDEST = 160
"""More characters of one line are not shown."""
_LONGEST = 2000
"""More characters of one message are not shown."""
_BEFORE = 60
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def caret_frame(span: Span, mark: str) -> tuple[str, str]:
    """The line where ``span`` starts, and the carets below its part of it."""
    line, column = span.source.position(span.start)
    text = span.source.line(line)
    first = min(column - 1, len(text))
    last = max(first, min(len(text), first + span.end - span.start))
    start = max(0, first - _BEFORE) if len(text) > _WIDEST else 0
    shown = text[start : start + _WIDEST]
    lead = "…" if start else ""
    tail = "…" if len(text) > start + _WIDEST else ""
    before, under = text[start:first], text[first : min(last, start + _WIDEST)]
    pad = " " * len(lead) + "".join("\t" if c == "\t" else " " * _columns(c) for c in before)
    return f"{lead}{visible(shown)}{tail}", pad + mark * max(1, sum(map(_columns, under)))


def visible(text: str) -> str:
    """``text`` without what a terminal would obey or hide; line ends and tabs stay."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if _is_unseen(c) else c for c in text)


def _is_unseen(character: str) -> bool:
    return character not in "\n\t" and category(character) in _UNSEEN


def _columns(character: str) -> int:
    if category(character) in ("Mn", "Me"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1
