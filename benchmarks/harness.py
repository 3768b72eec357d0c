"""What every benchmark uses: interleaved timing on one thread, and tables with aims."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Drawing


class NothingMeasuredError(Exception):
    """Says why a benchmark, or one case of it, has no figures."""


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    quick: bool = False

    def rounds(self, full: int) -> int:
        """How often to go round, of ``full`` times in a whole run."""
        return max(3, full // 4) if self.quick else full


@dataclass(frozen=True)
class Timing:
    """Seconds of process time for one call, one figure a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def over(self, other: Timing) -> float:
        """The median of the differences to ``other``, round by round."""
        return median(a - b for a, b in zip(self.seconds, other.seconds, strict=True))

    def uncertainty(self, other: Timing) -> float:
        """About how far :meth:`over` can be off: two standard errors of that median."""
        middle = self.over(other)
        away = [abs(a - b - middle) for a, b in zip(self.seconds, other.seconds, strict=True)]
        return 2 * 1.25 * 1.48 * median(away) / math.sqrt(len(away))


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, sample: float = 0.02
) -> dict[str, Timing]:
    """Time ``calls`` in turns, so that what disturbs the machine disturbs them all alike.

    A figure is taken over as many calls as fill ``sample`` seconds; who goes first rotates.
    """
    number: dict[str, int] = {}
    for name, call in calls.items():
        call()
        number[name] = max(1, math.ceil(sample / max(_seconds(call, 1), 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(_seconds(calls[name], number[name]))
    finally:
        gc.enable()
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def _seconds(call: Callable[[], Any], number: int) -> float:
    start = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - start) / number


def overhead_ratio(ours: Timing, peer: Timing, base: Timing) -> float | None:
    """(ours - base) / (peer - base), or None where noise hides what the peer adds."""
    added = peer.over(base)
    return None if added <= peer.uncertainty(base) else ours.over(base) / added


@dataclass(frozen=True)
class Row:
    """Figures of one case. ``judged`` is the one that the aim is about: at most ``aim``."""

    label: str
    figures: tuple[float | str | None, ...]
    judged: float | None = None
    aim: float | None = None

    @property
    def verdict(self) -> str:
        if self.aim is None:
            return ""
        if self.judged is None:
            return "not measured"
        return "met" if self.judged <= self.aim else "missed"


@dataclass
class Table:
    """What a benchmark found. ``judged`` heads the column of the figures that have aims."""

    title: str
    columns: Sequence[str]
    judged: str | None = None
    rows: list[Row] = field(default_factory=list[Row])
    notes: list[str] = field(default_factory=list[str])

    def add(
        self,
        label: str,
        *figures: float | str | None,
        judged: float | None = None,
        aim: float | None = None,
    ) -> None:
        self.rows.append(Row(label, figures, judged, aim))

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {
                "case": r.label,
                **dict(zip(self.columns, r.figures, strict=True)),
                **({self.judged: r.judged} if self.judged else {}),
                **({"aim": r.aim, "verdict": r.verdict} if r.aim is not None else {}),
            }
            for r in self.rows
        ]
        return {"title": self.title, "rows": rows, "notes": self.notes}

    def show(self, console: Console) -> None:
        aims = any(r.aim is not None for r in self.rows)
        drawing = Drawing(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        drawing.add_column("")
        for column in (*self.columns, *filter(None, [self.judged]), *(["aim"] if aims else [])):
            drawing.add_column(column, justify="right")
        if aims:
            drawing.add_column("")
        for row in self.rows:
            cells = [row.label, *map(written, row.figures)]
            cells += [written(row.judged)] if self.judged else []
            if aims:
                cells += [f"≤ {row.aim:g}" if row.aim is not None else "", row.verdict]
            drawing.add_row(*cells)
        console.print(drawing)
        for note in self.notes:
            console.print(f"  {note}", soft_wrap=True, highlight=False)


def written(figure: float | str | None) -> str:
    """A figure with three digits that count; a dash where nothing was measured."""
    if figure is None:
        return "—"
    if isinstance(figure, str):
        return figure
    if figure == 0 or not math.isfinite(figure):
        return f"{figure:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(figure))))
    return f"{figure:,.{min(digits, 6)}f}"
