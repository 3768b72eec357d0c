"""Where text came from: every later message can point back into it."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, eq=False)
class SourceText:
    """A named text. ``name`` is what messages show, usually a path."""

    name: str
    text: str = field(repr=False)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(found.end() for found in LINE_END.finditer(self.text))]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of ``offset``, both counted from 1."""
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of line ``number`` (from 1), without what ends it."""
        start = self._line_starts[number - 1]
        return self.text[start : self.line_end(start)]

    def line_end(self, offset: int) -> int:
        r"""Where the line of ``offset`` ends, at `\\n`, `\\r` or both."""
        found = LINE_END.search(self.text, offset)
        return found.start() if found else len(self.text)

    def line_ends(self, start: int, end: int) -> int:
        """How many lines end between two offsets."""
        return bisect_right(self._line_starts, end) - bisect_right(self._line_starts, start)


@dataclass(frozen=True)
class Span:
    """The half-open range ``[start, end)`` of characters in ``source``."""

    source: SourceText
    start: int
    end: int

    def to(self, other: Span) -> Span:
        """The span from the start of this one to the end of ``other``."""
        return Span(self.source, self.start, other.end)

    def holds(self, other: Span) -> bool:
        """Whether ``other`` lies within this one."""
        same = other.source is self.source
        return same and self.start <= other.start and other.end <= self.end

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def __str__(self) -> str:
        line, column = self.source.position(self.start)
        return f"{self.source.name}:{line}:{column}"
