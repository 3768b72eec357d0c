"""What is added, removed and changed between two plans for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from surgery.planning.plan import Edit, Plan
from surgery.reports.entries import Addition, additions_of, kind_of
from surgery.reports.figures import Family, dimensions, families

Change = Literal["added", "removed", "changed"]
SIGNS: dict[Change, str] = {"added": "+", "removed": "-", "changed": "~"}


@dataclass(frozen=True)
class Moved:
    """Sites at which two plans differ in the same way; for ``changed`` both edits are there."""

    change: Change
    sites: tuple[str, ...]
    before: Edit | None
    after: Edit | None

    @property
    def edit(self) -> Edit:
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def families(self) -> list[Family]:
        return families(self.sites)

    def lines(self) -> list[str]:
        """What differs, one thing a line."""
        if self.before is None or self.after is None:
            return [
                f"{SIGNS[self.change]} {a.name}   {dimensions(a.shape)}   {a.init}"
                for a in additions_of(self.edit)
            ]
        old = {a.name: a for a in additions_of(self.before)}
        new = {a.name: a for a in additions_of(self.after)}
        lines = [f"- {a.name}   {_shown(a)}" for n, a in old.items() if n not in new]
        lines += [f"+ {a.name}   {_shown(a)}" for n, a in new.items() if n not in old]
        lines += [
            f"~ {n}   {_shown(old[n])} → {_shown(new[n])}"
            for n in new
            if n in old and new[n] != old[n]
        ]
        if self.before.formula != self.after.formula:
            lines += [f"- y = {self.before.formula}", f"+ y = {self.after.formula}"]
        if self.before.merges != self.after.merges:
            lines.append(f"~ merges back: {_yes(self.before.merges)} → {_yes(self.after.merges)}")
        if self.before.identity != self.after.identity:
            was, now = _yes(self.before.identity), _yes(self.after.identity)
            lines.append(f"~ starts as the base: {was} → {now}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "change": self.change,
            "sites": list(self.sites),
            "before": self.before and self.before.method,
            "after": self.after and self.after.method,
            "kind": kind_of(self.edit),
            "differences": self.lines(),
        }


def moves(before: Plan, after: Plan) -> list[Moved]:
    """The differing edits of two plans, folded; edits are matched by site and name."""
    old = {(e.site, e.child): e for e in before.edits}
    new = {(e.site, e.child): e for e in after.edits}
    groups: dict[object, list[tuple[Edit | None, Edit | None]]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        pair = (old.get(key), new.get(key))
        was, now = (_meaning(e) if e else None for e in pair)
        if was != now:
            groups.setdefault((was, now, pair[0] and pair[0].statement), []).append(pair)
    return [_moved(pairs) for pairs in groups.values()]


def _moved(pairs: Sequence[tuple[Edit | None, Edit | None]]) -> Moved:
    before, after = pairs[0]
    change: Change = "added" if before is None else "removed" if after is None else "changed"
    sites = tuple((a or b).site for b, a in pairs if (a or b))  # type: ignore[union-attr]
    return Moved(change, sites, before, after)


def _meaning(edit: Edit) -> object:
    """All that an edit does; how its statement is written is no part of it."""
    sizes = tuple(sorted(edit.sizes.items()))
    derived = (edit.identity, edit.merges, edit.reason, edit.obstacle)
    return (edit.child, edit.formula, edit.layer, edit.rows, sizes, additions_of(edit), *derived)


def _shown(a: Addition) -> str:
    marks = f", {', '.join(a.marks)}" if a.marks else ""
    return f"{dimensions(a.shape)} {a.init}{marks}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
