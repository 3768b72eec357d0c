"""One spec against another: what a change of the spec changes in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.planning.plan import Plan
from surgery.reports.comparison import SIGNS, Moved
from surgery.reports.diff_markdown import table
from surgery.reports.entries import kind_of
from surgery.reports.figures import families, millions, some
from surgery.reports.summary import Summary

TRAINING = ("train now", "freeze now")
"""What becomes of base parameters that go another way under the second spec."""


@dataclass(frozen=True)
class Compared:
    """The differences between two plans, ready to be shown."""

    moved: Sequence[Moved]
    training: Mapping[str, Sequence[str]]
    before: Summary
    after: Summary

    @property
    def is_empty(self) -> bool:
        return not self.moved and not self.training

    @property
    def summary(self) -> str:
        """The last line."""
        if self.is_empty:
            return "No changes."
        counts = [
            f"{some(sum(len(m.sites) for m in self.moved if m.change == change), 'edit')} {change}"
            for change in SIGNS
            if any(m.change == change for m in self.moved)
        ]
        what = f"{', '.join(counts)}; " if counts else ""
        added = _arrow(millions(self.before.elements), millions(self.after.elements))
        share = _arrow(self.before.share, self.after.share)
        return f"Difference: {what}parameters added {added}, {share} trainable. {self.after.merges}"

    def text(self) -> str:
        parts: list[str] = []
        for m in self.moved:
            lines = [f"{SIGNS[m.change]} {m.sites[0] or '(the model)'}   {kind_of(m.edit)}"]
            lines[0] += f"   {method_of(m)}"
            lines += [f"    {line}" for line in m.lines()]
            if len(m.sites) > 1:
                shown = ", ".join(map(str, m.families))
                lines.append(f"  … {len(m.sites) - 1:,} more like it: {shown}")
            parts.append("\n".join(lines))
        for what, names in self.training.items():
            folded = "\n".join(f"    {family}" for family in families(names))
            parts.append(f"~ {len(names):,} base parameters {what}\n{folded}")
        return "\n\n".join([*parts, self.summary])

    def markdown(self) -> str:
        parts = [f"**{self.summary}**"]
        if self.moved:
            rows = [
                (
                    SIGNS[m.change],
                    f"{len(m.sites):,}",
                    "<br>".join(f"`{family}`" for family in m.families),
                    f"`{method_of(m)}`",
                    "<br>".join(f"`{line}`" for line in m.lines()),
                )
                for m in self.moved
            ]
            parts.append(table(("", "sites", "where", "method", "differences"), rows))
        for what, names in self.training.items():
            shown = ", ".join(f"`{family}`" for family in families(names))
            parts.append(f"{len(names):,} base parameters {what}: {shown}")
        return "\n\n".join(parts) + "\n"

    def as_dict(self) -> dict[str, Any]:
        return {
            "changes": [m.as_dict() for m in self.moved],
            "training": {what: list(self.training.get(what, ())) for what in TRAINING},
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "summary": self.summary,
        }


def method_of(m: Moved) -> str:
    """`lora(r = 4) → lora(r = 8)`, or the one method there is."""
    texts = [e.method.text for e in (m.before, m.after) if e]
    return " → ".join(dict.fromkeys(texts))


def training_changes(before: Plan, after: Plan, flags: Mapping[str, bool]) -> dict[str, list[str]]:
    """The base parameters that train under only one of two plans."""
    was, now = _trains(before, flags), _trains(after, flags)
    trains, freezes = TRAINING
    changes = {
        trains: [n for n in flags if now[n] and not was[n]],
        freezes: [n for n in flags if was[n] and not now[n]],
    }
    return {what: names for what, names in changes.items() if names}


def _trains(plan: Plan, flags: Mapping[str, bool]) -> dict[str, bool]:
    return {**flags, **plan.decisions}


def _arrow(was: str, now: str) -> str:
    return was if was == now else f"{was} → {now}"
