"""Globs over dotted module paths: what stands between backticks.

A pattern is anchored at the right, on whole components: `q_proj` is every path that ends in the
component `q_proj`. A leading `.` anchors it at the root, too. `*` and `?` stay inside a component;
`**` crosses: as a component of its own it stands for any number of components (at least one
when it comes last), as part of one for any text. `[ab]`, `[!ab]`, `{a,b}`, and `|` between whole
patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NoReturn

from surgery.language.automaton import Automaton


class GlobError(ValueError):
    """A pattern that means nothing. ``start`` and ``end`` say where in the pattern."""

    def __init__(self, message: str, start: int, end: int):
        super().__init__(message)
        self.start = start
        self.end = end


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """The predicate on dotted paths that ``pattern`` stands for; the root, "", matches none.

    Raises:
        GlobError: if it means nothing.

    """
    matches = _automaton(pattern).matches
    return lambda path: path != "" and matches(path)


@lru_cache(maxsize=1024)
def _automaton(pattern: str) -> Automaton:
    automaton = Automaton()
    for text, offset in alternatives(pattern):
        _Alternative(text, offset, automaton).read()
    return automaton


def alternatives(pattern: str) -> list[tuple[str, int]]:
    """The parts of ``pattern`` between top-level `|`, each with its offset, blanks trimmed."""
    found: list[tuple[str, int]] = []
    start = 0
    for end in [*_bars(pattern), len(pattern)]:
        part = pattern[start:end]
        text = part.strip()
        if not text:
            where = max(0, start - 1) if found else start
            raise GlobError("this path is empty", where, max(end, where + 1))
        found.append((text, start + part.index(text)))
        start = end + 1
    return found


def _bars(pattern: str) -> Iterator[int]:
    braces, in_set = 0, False
    for position, sign in enumerate(pattern):
        if in_set:
            in_set = sign != "]"
        elif sign == "[":
            in_set = True
        elif sign in "{}":
            braces += 1 if sign == "{" else -1
        elif sign == "|" and braces <= 0:
            yield position


class _Alternative:
    """One pass over one alternative, which starts at ``offset`` in the pattern."""

    def __init__(self, text: str, offset: int, automaton: Automaton):
        self.text = text
        self.offset = offset
        self.automaton = automaton
        self.rooted = text.startswith(".")
        self.position = self.component = 1 if self.rooted else 0
        self.braces: list[int] = []

    def read(self) -> None:
        self.automaton.begin()
        if not self.rooted:
            self.automaton.components()
        while self.position < len(self.text):
            self._sign(self.text[self.position])
        self._end_component(self.position)
        if self.braces:
            self._fail("this `{` is never closed", self.braces[-1])
        self.automaton.end()

    def _end_component(self, position: int) -> None:
        if position == self.component:
            self._fail("a component of this path is empty", max(0, position - 1))
        self.component = position + 1

    def _sign(self, sign: str) -> None:
        start = self.position
        self.position += 1
        match sign:
            case "." if not self.braces:
                self._end_component(start)
                self.automaton.one(sign.__eq__)
            case "*":
                self._stars(start)
            case "?":
                self.automaton.one(_no_dot)
            case "[":
                self._set(start)
            case "{":
                self.braces.append(start)
                self.automaton.open()
            case "}" if self.braces:
                self.braces.pop()
                self.automaton.close()
            case "," if self.braces:
                self.automaton.otherwise()
            case "]" | "}":
                self._fail(f"this `{sign}` closes nothing", start)
            case "|":
                self._fail("inside braces alternatives are parted by `,`", start)
            case _ if sign.isspace():
                self._fail("a path holds no blanks", start)
            case _:
                self.automaton.one(sign.__eq__)

    def _stars(self, start: int) -> None:
        if not self.text.startswith("*", self.position):
            self.automaton.many(_no_dot)
            return
        while self.text.startswith("*", self.position):
            self.position += 1
        alone = start == self.component and not self.braces
        if alone and self.position == len(self.text):
            self.automaton.one(_anything)
        elif alone and self.text[self.position] == ".":
            self.position += 1
            self.component = self.position
            self.automaton.components()
            return
        self.automaton.many(_anything)

    def _set(self, start: int) -> None:
        end = self.text.find("]", start + 1)
        if end < 0:
            self._fail("this `[` is never closed", start)
        self.position = end + 1
        members = self.text[start + 1 : end]
        negated = members.startswith("!")
        members = members.removeprefix("!")
        if not members:
            self._fail("this set holds no characters", start, end + 1)
        ranges = [
            (first, last or first)
            for first, last in re.findall(r"(.)(?:-(.))?", members, re.DOTALL)
        ]
        for first, last in ranges:
            if last < first:
                self._fail(f"the range `{first}-{last}` runs backwards", start, end + 1)
        self.automaton.one(
            lambda c: c != "." and negated != any(first <= c <= last for first, last in ranges)
        )

    def _fail(self, message: str, start: int, end: int | None = None) -> NoReturn:
        first = self.offset + start
        raise GlobError(message, first, first + 1 if end is None else self.offset + end)


def _no_dot(character: str) -> bool:
    return character != "."


def _anything(character: str) -> bool:
    return True
