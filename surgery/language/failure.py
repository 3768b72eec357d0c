"""A place where the parser could not go on, and what can be asked about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from surgery.language.diagnostics import Diagnostic, Label
from surgery.language.lalr import END, Stepper
from surgery.language.source import SourceText, Span
from surgery.language.words import CLAUSES, ITEMS, RESERVED, SIGNS, STEPS

if TYPE_CHECKING:
    from lark import Token

_EXPRESSION = {"NAME", "NUMBER", "STRING", "LPAR", "MINUS", "NOT"}
_OPERAND = {"NAME", "NUMBER", "STRING", "LPAR", "MINUS"}
_SELECTOR = {"NAME", "PATH", "ALL", "LPAR"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "AT", "PERCENT", "COMPARE", "AND", "OR"}
_KINDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string",
    "PATH": "a path",
    "ASSIGN": "`+=`",
    "COMPARE": "a comparison",
}


@dataclass
class Failure:
    """``tokens[place]`` was refused, or what follows the last token was, ``after``.

    ``kinds`` are those of the tokens; ``origin`` is the parser before ``tokens[start]``, where the
    statement or step begins; ``opened`` holds the brackets that stand open.
    """

    source: SourceText
    tokens: list[Token]
    kinds: list[str]
    place: int
    after: Token
    origin: Stepper
    start: int
    opened: list[Token]

    @cached_property
    def accepts(self) -> frozenset[str]:
        return self.origin.accepts(self.kinds[self.start : self.place])

    @property
    def at_end(self) -> bool:
        return self.place == len(self.tokens)

    @property
    def token(self) -> Token:
        return self.after if self.at_end else self.tokens[self.place]

    @property
    def kind(self) -> str:
        return END if self.at_end else self.token.type

    @property
    def next_kind(self) -> str:
        return self.kinds[self.place + 1] if self.place + 1 < len(self.tokens) else END

    def previous(self, back: int = 1) -> str:
        place = self.place - back
        return self.kinds[place] if place >= self.start else ""

    @property
    def opener(self) -> str:
        return self.kinds[self.start] if self.start < len(self.tokens) else ""

    def span(self, first: int, last: int | None = None) -> Span:
        """From one token to another, both by their places."""
        last = first if last is None else last
        start, end = self.tokens[first].start_pos or 0, self.tokens[last].end_pos or 0
        return Span(self.source, start, end)

    @property
    def here(self) -> Span:
        start = self.token.start_pos or 0
        return Span(self.source, start, start + len(self.token))

    def touches_previous(self) -> bool:
        return self.place > 0 and self.tokens[self.place - 1].end_pos == self.token.start_pos

    def opens_line(self, place: int) -> bool:
        """Whether the token at ``place`` is the first on its line."""
        start = self.tokens[place].start_pos or 0
        column = self.source.position(start)[1]
        return not self.source.text[start - column + 1 : start].strip()

    def repaired(self, place: int, replace: int, *kinds: str) -> bool:
        """Whether the parser would get past the refused token if ``kinds`` stood at ``place``.

        They replace ``replace`` tokens.
        """
        rest = self.kinds[place + replace : self.place + replace + 2]
        repaired = [*self.kinds[self.start : place], *kinds, *rest, END]
        past = self.place + 1 - self.start + len(kinds) - replace
        enough = repaired[: past + 1]
        return self.origin.reach(enough) == len(enough)

    def diagnose(
        self, code: str, message: str, *labels: Label | Span, help: str | None = None
    ) -> Diagnostic:
        marks = tuple(Label(x) if isinstance(x, Span) else x for x in labels or (self.here,))
        return Diagnostic(code, message, marks, help)

    def found(self) -> str:
        """The refused token in words."""
        if self.after.type == END and self.at_end:
            return "the end of the text"
        if self.at_end and self.after.type in ITEMS:
            return f"the next statement, `{self.after}`"
        return self.token.value if self.kind == "PATH" else f"`{self.token}`"

    def expected(self) -> str:
        """What would have been accepted, in words, as ``a, b or c``."""
        left = set(self.accepts)
        words: list[str] = []
        for group, name in (
            (_EXPRESSION, "an expression"),
            (_OPERAND, "an operand"),
            (_SELECTOR, "a selector"),
            (set(ITEMS), "the next statement"),
            ({*STEPS, "NAME", "RBRACE"}, "the next step"),
            (set(CLAUSES), "a clause"),
        ):
            if group <= left:
                words.append(name)
                left -= group
        if _OPERATORS - {"COMPARE", "AND", "OR"} <= left:
            left -= _OPERATORS
            words.append("an operator")
        left -= {"SEMICOLON", END}
        words += [_word(kind) for kind in sorted(left)]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _word(kind: str) -> str:
    return _KINDS.get(kind) or f"`{RESERVED.get(kind) or SIGNS[kind]}`"
