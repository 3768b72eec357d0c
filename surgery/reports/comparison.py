"""What is added, removed and changed between two plans for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from surgery.anatomy.site import Site
from surgery.planning.edit import Edit, Tensor
from surgery.planning.plan import Plan
from surgery.reports.entries import kind_of
from surgery.reports.figures import Family, dimensions, families

Change = Literal["added", "removed", "changed"]
SIGNS: dict[Change, str] = {"added": "+", "removed": "-", "changed": "~"}


@dataclass(frozen=True)
class Moved:
    """Sites at which two plans differ in the same way; for ``changed`` both edits are there."""

    change: Change
    at: tuple[Site, ...]
    before: Edit | None
    after: Edit | None

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites."""
        return tuple(site.name for site in self.at)

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
                for a in self.edit.added
            ]
        old = {a.name: a for a in self.before.added}
        new = {a.name: a for a in self.after.added}
        lines = [f"- {a.name}   {_shown(a)}" for n, a in old.items() if n not in new]
        lines += [f"+ {a.name}   {_shown(a)}" for n, a in new.items() if n not in old]
        lines += [
            f"~ {n}   {_shown(old[n])} → {_shown(new[n])}"
            for n in new
            if n in old and new[n] != old[n]
        ]
        was, now = self.before.derived, self.after.derived
        if was.formula != now.formula:
            lines += [f"- y = {was.formula}", f"+ y = {now.formula}"]
        if was.merges != now.merges:
            lines.append(f"~ merges back: {_yes(was.merges)} → {_yes(now.merges)}")
        if was.identity != now.identity:
            lines.append(f"~ starts as the base: {_yes(was.identity)} → {_yes(now.identity)}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "change": self.change,
            "sites": list(self.sites),
            "before": self.before and self.before.method.text,
            "after": self.after and self.after.method.text,
            "kind": kind_of(self.edit),
            "differences": self.lines(),
        }


def moves(before: Plan, after: Plan) -> list[Moved]:
    """The differing edits of two plans, folded; edits are matched by site and name."""
    old = {e.key: e for e in before.edits}
    new = {e.key: e for e in after.edits}
    groups: dict[object, list[tuple[Edit | None, Edit | None]]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        pair = (old.get(key), new.get(key))
        was, now = (_meaning(e) if e else None for e in pair)
        if was != now:
            groups.setdefault((was, now, pair[0] and pair[0].method.statement), []).append(pair)
    return [_moved(pairs) for pairs in groups.values()]


def _moved(pairs: Sequence[tuple[Edit | None, Edit | None]]) -> Moved:
    before, after = pairs[0]
    change: Change = "added" if before is None else "removed" if after is None else "changed"
    at = tuple((a or b).site for b, a in pairs if (a or b))  # type: ignore[union-attr]
    return Moved(change, at, before, after)


def _meaning(edit: Edit) -> object:
    """All that an edit does; how its statement is written is no part of it."""
    sizes = tuple(sorted(edit.sizes.items()))
    child, rows, derived = edit.method.child, edit.site.rows, edit.derived
    claims = (derived.formula, derived.identity, derived.reason, derived.obstacle)
    return (child, edit.layer, rows, sizes, edit.added, *claims)


def _shown(a: Tensor) -> str:
    marks = f", {', '.join(a.marks)}" if a.marks else ""
    return f"{dimensions(a.shape)} {a.init}{marks}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
