"""Which rows of a weight a slice of a layer's outputs is: regular blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Layout = tuple[int, int, int, int]
"""First row, rows of a block, distance of blocks, number of blocks."""


@dataclass(frozen=True)
class Rows:
    """``count`` blocks of ``width`` rows each, ``period`` apart, the first at ``start``.

    One block is a contiguous slice. Several cover all ``total`` rows with their period, as those
    of a projection do that keeps q, k and v of each head together (GPT-NeoX, BLOOM, Falcon).

    >>> [*Rows("k", 12, 2, 2, 6, 2)]
    [2, 3, 8, 9]

    """

    name: str
    total: int
    start: int
    width: int
    period: int
    count: int

    @cached_property
    def size(self) -> int:
        return self.width * self.count

    @property
    def layout(self) -> Layout:
        return (self.start, self.width, self.period, self.count)

    def __iter__(self) -> Iterator[int]:
        for block in range(self.count):
            first = self.start + block * self.period
            yield from range(first, first + self.width)

    def __str__(self) -> str:
        return self.name

    def apart(self, other: Rows) -> bool:
        """Whether no row is in both."""
        return not set(self) & set(other)


def rows_of(name: str, total: int, features: Sequence[int]) -> Rows | None:
    """The blocks that ``features``, in ascending order, make up; None if they are irregular.

    >>> rows_of("v", 12, [4, 5, 10, 11])
    Rows(name='v', total=12, start=4, width=2, period=6, count=2)
    >>> rows_of("v", 12, [0, 1, 5]) is None
    True

    """
    if not features:
        return None
    start = features[0]
    width = next((i for i, f in enumerate(features) if f != start + i), len(features))
    count = len(features) // width
    period = features[width] - start if count > 1 else total
    found = Rows(name, total, start, width, period, count)
    regular = list(found) == list(features) and (count == 1 or count * period == total)
    return found if regular and start + width <= period else None
