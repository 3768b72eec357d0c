"""What one method does to what stands at its site, as one line: `y += linear(linear(x, A), B)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgery.planning.edit import Edit
from surgery.planning.plan import Plan
from surgery.reports.change import change_of
from surgery.rules.expand import Wrapped
from surgery.rules.program import build

Standing = Mapping[str, Sequence[Wrapped]]


def formula_of(plan: Plan, edit: Edit, standing: Standing) -> str:
    """How ``edit`` changes the result `y` that it finds, in terms of its own params."""
    wraps = _wraps(plan, edit, standing)
    before = build(edit.signature, tuple(wraps[:-1]))
    after = build(edit.signature, tuple(wraps))
    return change_of(before, after).replace(f"{edit.graft}.", "")


def _wraps(plan: Plan, edit: Edit, standing: Standing) -> list[Wrapped]:
    wraps = list(standing.get(edit.site.whole, ()))
    for other in plan.edits:
        if other.site.whole == edit.site.whole:
            wraps.append(other.wrapped)
        if other is edit:
            break
    return wraps
