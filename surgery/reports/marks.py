"""What a report marks at the places of a model: methods, matches, and what trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from surgery.planning.plan import Plan
from surgery.reports.comparison import SIGNS, Moved
from surgery.reports.comparison_text import Compared, method_of
from surgery.reports.context import ModelContext
from surgery.reports.diff_text import remarks
from surgery.reports.entries import Entry
from surgery.reports.figures import dimensions


@dataclass(frozen=True)
class Note:
    """One method at a place, or that it matches; ``sign`` tells what becomes of it, as in a text."""

    sign: str
    title: str
    where: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marks:
    """All that is marked at one place; ``trained`` and ``frozen`` name parameters of its own."""

    notes: tuple[Note, ...] = ()
    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()


NOTHING = Marks()


@dataclass
class _Collected:
    notes: dict[str, list[Note]] = field(default_factory=dict[str, list[Note]])
    trained: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    frozen: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    tied: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def done(self) -> dict[str, Marks]:
        every = [self.notes, self.trained, self.frozen, self.tied]
        return {
            path: Marks(
                tuple(self.notes.get(path, ())),
                tuple(self.trained.get(path, ())),
                tuple(self.frozen.get(path, ())),
                tuple(self.tied.get(path, ())),
            )
            for path in dict.fromkeys(path for of in every for path in of)
        }

    def states(self, trains: Mapping[str, bool]) -> None:
        """Sort base parameters by whether they train, each at the module that owns it."""
        for name, trained in trains.items():
            owner, _, own = name.rpartition(".")
            (self.trained if trained else self.frozen).setdefault(owner, []).append(own)

    def ties(self, aliases: Mapping[str, Iterable[str]]) -> None:
        """Say of the other names of a parameter what it is."""
        for first, others in aliases.items():
            for name in others:
                owner, _, own = name.rpartition(".")
                self.tied.setdefault(owner, []).append(f"{own} is {first}")


def marks_of_plan(plan: Plan, context: ModelContext, entries: Iterable[Entry]) -> dict[str, Marks]:
    """What ``plan`` does at each path; its ``entries`` have the formulas."""
    places = _Collected()
    for entry in entries:
        note = _note(entry)
        for edit in entry.edits:
            places.notes.setdefault(edit.site.path, []).append(note)
    places.states({**context.flags, **plan.decisions})
    places.ties(context.aliases)
    return places.done()


def _note(entry: Entry) -> Note:
    adds = [
        f"+ {t.name}   {dimensions(t.shape)}   {t.init}{''.join(f'   {m}' for m in t.marks)}"
        for t in entry.added
    ]
    method = entry.first.method
    lines = (*adds, *entry.formula.split("; "), *remarks(entry))
    return Note("+", method.text, method.place, lines)


def marks_of_comparison(compared: Compared, context: ModelContext) -> dict[str, Marks]:
    """Where two plans differ; parameters are marked that train under one of them alone."""
    places = _Collected()
    for moved in compared.moved:
        note = Note(SIGNS[moved.change], method_of(moved), _where(moved), tuple(moved.lines()))
        for site in moved.at:
            places.notes.setdefault(site.path, []).append(note)
    places.states(
        dict.fromkeys(compared.training.get("train now", ()), True)
        | dict.fromkeys(compared.training.get("freeze now", ()), False)
    )
    places.ties(context.aliases)
    return places.done()


def _where(moved: Moved) -> str:
    return " → ".join(dict.fromkeys(e.method.place for e in (moved.before, moved.after) if e))


def marks_of_matches(paths: Iterable[str], selector: str) -> dict[str, Marks]:
    """That the places at ``paths`` match ``selector``."""
    return {path: Marks((Note("✓", f"matches {selector}"),)) for path in paths}
