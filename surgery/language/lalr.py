"""The grammar as a running parser; with `tables.py`, the one place that touches Lark's types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from surgery.language.tables import parser

if TYPE_CHECKING:
    from lark import Token

    from surgery.language.build import Builder

END = "$END"


class RefusedError(Exception):
    """The parser cannot go on with a token."""


class UnreadableError(Exception):
    """No word of the language starts at ``offset``."""

    def __init__(self, offset: int):
        super().__init__(offset)
        self.offset = offset


class Grammar:
    """A loaded grammar whose reductions call the methods of ``builder``."""

    def __init__(self, builder: Builder):
        self.builder = builder
        self._lark: Any = parser(builder)

    def parse(self, text: str) -> Any:
        """What the builder makes of the whole text."""
        from lark.exceptions import UnexpectedCharacters, UnexpectedToken

        try:
            return self._lark.parse(text)
        except UnexpectedToken:
            raise RefusedError from None
        except UnexpectedCharacters as problem:
            raise UnreadableError(_offset(problem)) from None

    def tokens(self, text: str, skip: Callable[[int], int] | None = None) -> Iterator[Token]:
        """The words of ``text``, one by one.

        Where none starts, ``skip`` is told the offset and tells where to go on.
        """
        from lark.exceptions import UnexpectedCharacters

        reading = self._lark.parse_interactive(text)
        lexer = reading.lexer_thread
        while True:
            try:
                yield from lexer.lex(reading.parser_state)
                return
            except UnexpectedCharacters as problem:
                if skip is None:
                    raise UnreadableError(_offset(problem)) from None
                lexer.state.line_ctr.char_pos = skip(_offset(problem))

    def stepper(self) -> Stepper:
        return Stepper(self._lark.parse_interactive(""))


class Stepper:
    """A parser that is fed one token at a time, and can be copied to try something."""

    def __init__(self, interactive: Any):
        self._interactive = interactive

    def copy(self) -> Stepper:
        return Stepper(self._interactive.copy(deepcopy_values=False))

    def feed(self, token: Token) -> Any:
        """Take ``token``; for the end of the text, give back what was built."""
        from lark.exceptions import UnexpectedToken

        try:
            return self._interactive.feed_token(token)
        except UnexpectedToken:
            raise RefusedError from None

    def accepts(self, kinds: Iterable[str]) -> frozenset[str]:
        """The kinds of token that may come behind those of these ``kinds``."""
        trial = self._trial()
        _take(trial, kinds)
        return frozenset(trial.accepts())

    def reach(self, kinds: Iterable[str]) -> int:
        """How many tokens of these ``kinds`` the parser would take, building nothing."""
        return _take(self._trial(), kinds)

    def _trial(self) -> Any:
        trial = self._interactive.copy(deepcopy_values=False)
        trial.parser_state.parse_conf = copy(trial.parser_state.parse_conf)
        trial.parser_state.parse_conf.callbacks = {}
        return trial


def _take(trial: Any, kinds: Iterable[str]) -> int:
    from lark import Token
    from lark.exceptions import UnexpectedToken

    taken = 0
    try:
        for kind in kinds:
            trial.feed_token(Token(kind, ""))
            taken += 1
    except UnexpectedToken:
        pass
    return taken


def _offset(problem: Any) -> int:
    return problem.pos_in_stream


def make_token(kind: str, text: str, offset: int) -> Token:
    from lark import Token

    return Token(kind, text, start_pos=offset, end_pos=offset + len(text))


@cache
def grammar() -> Grammar:
    """The grammar, read on first use."""
    from surgery.language.build import Builder

    return Grammar(Builder())
