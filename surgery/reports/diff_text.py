"""A difference as text, in the manner of `terraform plan`."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.language.diagnostics import Diagnostic, render
from surgery.planning.edit import Tensor
from surgery.planning.plan import Plan
from surgery.reports.context import ModelContext
from surgery.reports.entries import Entry
from surgery.reports.figures import dimensions, some
from surgery.reports.steering import steered, trained
from surgery.reports.summary import Summary
from surgery.reports.training import Parameters, shaped, tied

Row = tuple[str, str]
"""What a line says, and what stands to its right."""


def text_of(
    plan: Plan,
    context: ModelContext,
    entries: Sequence[Entry],
    training: Sequence[Parameters],
    summary: Summary,
) -> str:
    """The whole report; its last line is the summary."""
    blocks = [_block(entry) for entry in entries]
    rows = [row for block in blocks for row in block]
    column = min(72, max((len(left) for left, right in rows if right), default=0) + 3)
    parts = ["\n".join(_line(row, column) for row in block) for block in blocks]
    if not summary.is_empty:
        parts += _base(plan, training)
        parts += ["\n".join(lines)] if (lines := steered(plan)) else []
    notes = [f"note: {note}" for note in notes_of(plan, context, entries)]
    if notes and not summary.is_empty:
        parts.append("\n".join(notes))
    parts += [render(warning) for warning in plan.warnings]
    parts.append("\n".join(closing(summary)))
    return "\n\n".join(parts)


def closing(summary: Summary) -> list[str]:
    """The lines below the entries: cost, start, and the summary."""
    lines: list[str] = []
    if summary.edits:
        cost = f"Cost: {summary.cost}. " if summary.cost else ""
        start = "Identity" if summary.identity else "Changes the output"
        lines.append(f"{cost}{start} at initialization.")
    return [*lines, str(summary)]


def _block(entry: Entry) -> list[Row]:
    first = entry.first
    rows: list[Row] = [(f"~ {first.site.name or '(the model)'}   {entry.kind}", first.method.place)]
    names = max((len(a.name) for a in entry.added), default=0)
    shapes = max((len(dimensions(a.shape)) for a in entry.added), default=0)
    rows += [(_addition(a, names, shapes), "") for a in entry.added]
    *changes, last = entry.formula.split("; ")
    rows += [(f"    {change}", "") for change in changes]
    rows.append((f"    {last}", first.method.text))
    rows += [(f"    {line}", "") for line in trained(first)]
    rows += [(f"    {remark}", "") for remark in remarks(entry)]
    if len(entry.edits) > 1:
        rows.append((f"  … {len(entry.edits) - 1:,} more like it{_where(entry)}", ""))
    return rows


def _where(entry: Entry) -> str:
    return f": {', '.join(map(str, entry.families))}"


def _addition(a: Tensor, names: int, shapes: int) -> str:
    more = f"   {', '.join(a.marks)}" if a.marks else ""
    return f"    + {a.name:<{names}}   {dimensions(a.shape):<{shapes}}   {a.init}{more}"


def remarks(entry: Entry) -> list[str]:
    """What a reviewer should know of an entry; nothing for one that is harmless and merges."""
    found: list[str] = []
    if not entry.first.derived.identity:
        found.append("! changes the output at initialization")
    if entry.reason:
        found.append(f"! cannot be merged: {entry.reason}")
    if entry.first.derived.folds:
        found.append("the network can be folded into the vectors that it computes")
    return found


def _base(plan: Plan, training: Sequence[Parameters]) -> list[str]:
    parts: list[str] = []
    for group in training:
        if not group.names:
            continue
        lines = [f"{'~' if group.verb == 'train' else ' '} {group.verb} {group}"]
        if group.verb == "train" or not plan.edits:
            folded = shaped(plan, group.names)
            width = min(56, max(len(str(family)) for family, _ in folded))
            lines += [f"    {family!s:<{width}}   {shape}" for family, shape in folded[:8]]
            if len(folded) > 8:
                rest = sum(len(family.members) for family, _ in folded[8:])
                lines.append(f"    … {rest:,} more")
        parts.append("\n".join(lines))
    return parts


def notes_of(plan: Plan, context: ModelContext, entries: Sequence[Entry]) -> list[str]:
    """Ties that make a change reach further than the names say, and what could not be checked."""
    found = [
        f"{site.name} is also available as {', '.join(p for p in site.paths if p != site.name)}"
        for entry in entries
        for site in (edit.site for edit in entry.edits)
        if len(site.paths) > 1
    ]
    shown = found[:4] + ([f"{some(len(found) - 4, 'more site')} like this"] * (len(found) > 4))
    return [*shown, *tied(plan, context), *_unchecked(plan)]


def _unchecked(plan: Plan) -> list[str]:
    text = "not checked whether every change affects what the model returns"
    return [f"{text}: {plan.unchecked}"] if plan.unchecked else []


def _line(row: Row, column: int) -> str:
    left, right = row
    return f"{left:<{column}}{'' if len(left) < column else '   '}{right}".rstrip()


def warning_text(warning: Diagnostic) -> str:
    """A warning on one line, with its place."""
    place = f" ({warning.labels[0].span})" if warning.labels else ""
    return f"{warning.message}{place}"
