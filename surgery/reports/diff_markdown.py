"""A difference as Markdown: a table for the description of a pull request, details below it."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.planning.edit import Tensor
from surgery.planning.plan import Plan
from surgery.reports.context import ModelContext
from surgery.reports.diff_text import closing, notes_of, remarks, warning_text
from surgery.reports.entries import Entry
from surgery.reports.figures import dimensions
from surgery.reports.summary import Summary
from surgery.reports.training import Parameters, shaped

HEAD = ("sites", "where", "kind", "method", "adds to each", "merges")


def markdown_of(
    plan: Plan,
    context: ModelContext,
    entries: Sequence[Entry],
    training: Sequence[Parameters],
    summary: Summary,
) -> str:
    """The whole report."""
    lines = closing(summary)
    parts = [f"**{lines[-1]}**", *lines[:-1]]
    if entries:
        parts.append(table(HEAD, [_row(entry) for entry in entries]))
    parts += [_details(entry) for entry in entries]
    if not summary.is_empty:
        parts += [_base(plan, group) for group in training if group.names]
    warnings = [f"> ⚠ {warning_text(w)}" for w in plan.warnings]
    notes = [f"> {note}" for note in notes_of(plan, context, entries)]
    if warnings or notes:
        parts.append("\n>\n".join([*warnings, *notes]))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; pipes in cells are escaped."""
    body = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in row)} |" for row in body)


def _row(entry: Entry) -> tuple[str, ...]:
    first = entry.first
    where = "<br>".join(f"`{family}`" for family in entry.families)
    added = "<br>".join(_addition(a) for a in entry.added) or "nothing"
    merges = "no" if entry.reason else "yes"
    method = f"`{first.method.text}` ({first.method.place})"
    return (f"{len(entry.edits):,}", where, entry.kind, method, added, merges)


def _addition(a: Tensor) -> str:
    marks = f" ({', '.join(a.marks)})" if a.marks else ""
    return f"`{a.name}` {dimensions(a.shape)}{marks}"


def _details(entry: Entry) -> str:
    first = entry.first
    lines = [f"~ {first.site.name or '(the model)'}   {entry.kind}"]
    lines += [f"+ {a.name}   {dimensions(a.shape)}   {a.init}" for a in entry.added]
    lines += [f"  {entry.formula}", *(f"  {remark}" for remark in remarks(entry))]
    shown = "\n".join(lines)
    sites = "\n".join(f"    {site}" for site in entry.sites)
    return (
        f"<details><summary><code>{first.method.text}</code>, {len(entry.edits):,} × {entry.kind}"
        f"</summary>\n\n```diff\n{shown}\n```\n\n{sites}\n\n</details>"
    )


def _base(plan: Plan, group: Parameters) -> str:
    families = [f"- `{family}` {shape}" for family, shape in shaped(plan, group.names)]
    lines = "\n".join(families)
    return f"<details><summary>{group.verb} {group}</summary>\n\n{lines}\n\n</details>"
