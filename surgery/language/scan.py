"""Reading the words of a text that may hold some that are none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from surgery.language.diagnostics import MOST, Diagnostic, Label
from surgery.language.lalr import grammar, make_token
from surgery.language.source import SourceText, Span

if TYPE_CHECKING:
    from lark import Token

POISON = "POISON"
"""The kind of a token that stands where a word was unreadable: already reported."""

_CLOSED_STRING = re.compile(r'"(?:[^"\\\r\n]|\\.)*"')
_BAD_ESCAPE = re.compile(r'\\[^"\\nt]')
_NUMBER_AND_WORD = re.compile(r"[0-9][0-9A-Za-z_.]*")
_STRANGE = re.compile(r"""'[^'\r\n]*'|[^\s\x21-\x7e]+|.""", re.DOTALL)

_INSTEAD = {
    "'": 'strings stand between double quotes: `"sum"`',
    "&": "write `and`",
    "!": "write `not`, or `!=`",
    "^": "there is no such operator",
    "\u00a0": "this is a no-break space: write a plain one",
    "“": 'strings stand between straight quotes: `"sum"`',
    "”": 'strings stand between straight quotes: `"sum"`',
    "−": "write `-`",
    "–": "write `-`",
    "×": "write `*`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
}


def scan(source: SourceText, problems: list[Diagnostic]) -> Iterator[Token]:
    """The tokens of ``source``, with poison where ``problems`` tell of an unreadable word."""
    poison: list[Token] = []

    def skip(offset: int) -> int:
        end, diagnostic = _unreadable(source, offset)
        problems.append(diagnostic)
        poison.append(make_token(POISON, "", offset))
        return end if len(problems) < MOST else len(source.text)

    for token in grammar().tokens(source.text, skip):
        yield from poison
        poison.clear()
        yield token
    yield from poison


def _unreadable(source: SourceText, start: int) -> tuple[int, Diagnostic]:
    """How far the unreadable text from ``start`` goes, and what to say of it."""
    text = source.text
    line_end = source.line_end(start)
    if text[start] == "`":
        opener = Label(Span(source, start, start + 1), "opened here")
        return line_end, Diagnostic(
            "S103",
            "this path is never closed",
            (opener,),
            "a path ends with a backtick on its line",
        )
    if text[start] == '"':
        return _string(source, start, line_end)
    if found := _NUMBER_AND_WORD.match(text, start):
        span = Span(source, start, found.end())
        message = f"the number runs into a word: `{found[0]}`"
        help = "a name starts with a letter" if not re.fullmatch(r"[\d_]+", found[0]) else None
        return found.end(), Diagnostic("S102", message, (Label(span),), help)
    end = start + 1
    if strange := _STRANGE.match(text, start):
        end = strange.end()
    signs = text[start:end]
    help = _INSTEAD.get(signs) or _INSTEAD.get(signs[0])
    if help is None and signs.isalpha():
        help = "names are written in ASCII letters, digits and `_`"
    message = f"unexpected `{signs}`"
    return end, Diagnostic("S102", message, (Label(Span(source, start, end)),), help)


def _string(source: SourceText, start: int, line_end: int) -> tuple[int, Diagnostic]:
    closed = _CLOSED_STRING.match(source.text, start)
    if not closed:
        opener = Label(Span(source, start, start + 1), "opened here")
        return line_end, Diagnostic(
            "S103",
            "this string is never closed",
            (opener,),
            "a string ends on the line it starts on",
        )
    # Pairs are read from the left, so that the second half of `\\` opens no escape.
    escape = next(
        found for found in re.finditer(r"\\.", closed[0]) if _BAD_ESCAPE.fullmatch(found[0])
    )
    place = start + escape.start()
    return closed.end(), Diagnostic(
        "S102",
        f"unknown escape sequence `{escape[0]}`",
        (Label(Span(source, place, place + 2)),),
        r"the escapes are `\"`, `\\`, `\n` and `\t`",
    )
