"""Numbers and paths as a reader likes them: short, and never rounded to something untrue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"(?<![^.\[])\d+(?![^.\[\]])")


def millions(elements: int) -> str:
    """`0.23 M`, `134.52 M`, `7.24 B`; below ten thousand every one is told."""
    if elements < 10_000:
        return f"{elements:,}"
    unit, name = (1e9, "B") if elements >= 1e9 else (1e6, "M")
    return f"{elements / unit:.2f} {name}"


def percent(part: int, whole: int) -> str:
    """Two decimals, or two digits where those would be zeros; nothing but nothing is `0 %`."""
    share = 100 * part / whole if whole else 0.0
    if share == 0 or share >= 0.1:
        return f"{share:.2f} %" if share else "0 %"
    return f"{share:.2g} %"


def operations(flops: int) -> str:
    """`92.2 kFLOPs`, `1.3 GFLOPs`."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if flops >= unit:
            return f"{flops / unit:.1f} {name}FLOPs"
    return f"{flops} FLOPs"


def some(number: int, word: str) -> str:
    """`1 site`, `60 sites`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def quoted(text: str) -> str:
    """`text` between backticks, unless it has some of its own."""
    return text if "`" in text else f"`{text}`"


def dimensions(shape: Sequence[int]) -> str:
    """`4 × 576`; a scalar is `1`."""
    return " × ".join(map(str, shape)) or "1"


@dataclass(frozen=True)
class Family:
    """Paths that differ in their numbers only: `layers.{0…29}.q_proj`."""

    pattern: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        return self.pattern


def families(paths: Iterable[str]) -> list[Family]:
    """``paths`` folded, in the order in which each family first occurs."""
    groups: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        groups.setdefault(_NUMBER.sub("*", path), []).append(path)
    return [Family(_pattern(shape, members), tuple(members)) for shape, members in groups.items()]


def shortened(paths: Iterable[str], most: int = 3) -> str:
    """The first few families of ``paths``, and how many more there are."""
    found = families(paths)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{', '.join(map(str, found[:most]))}{more}"


def _pattern(shape: str, members: list[str]) -> str:
    if len(members) == 1:
        return members[0]
    columns = list(zip(*(map(int, _NUMBER.findall(m)) for m in members), strict=True))
    distinct = [sorted(set(column)) for column in columns]
    boxed = 1
    for values in distinct:
        boxed *= len(values)
    # A range is shown only where every combination is there.
    shown = [_range(v) if boxed == len(members) else "*" for v in distinct]
    parts = shape.split("*")
    filled = (*shown, *[""] * (len(parts) - len(shown)))
    return "".join(part + value for part, value in zip(parts, filled, strict=True))


def _range(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}…{values[-1]}}}"
    if len(values) <= 6:
        return f"{{{','.join(map(str, values))}}}"
    return f"{{{values[0]},…,{values[-1]}}}"


def aligned(rows: Sequence[tuple[str, ...]], gap: int = 3, widest: int = 64) -> list[str]:
    """Rows of cells as lines with straight columns; no column but the last is padded past its own.

    A cell wider than ``widest`` does not push the others out.
    """
    count = max((len(row) for row in rows), default=0)
    widths = [
        max((len(r[i]) for r in rows if i < len(r) and len(r[i]) <= widest), default=0)
        for i in range(count)
    ]
    lines: list[str] = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append((" " * gap).join(cells).rstrip())
    return lines
