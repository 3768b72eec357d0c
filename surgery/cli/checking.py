"""One file checked by itself: its errors, or what its rules and statements promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, SurgeryError
from surgery.language.parse import parse
from surgery.language.source import SourceText
from surgery.planning.spec import resolve
from surgery.reports.claims import Claims, Stated, claims_of, merging, stated
from surgery.reports.figures import aligned, some
from surgery.rules.library import disk_reader, prelude


@dataclass
class Checked:
    """A file with what was found in it."""

    name: str
    claims: list[Claims] = field(default_factory=list[Claims])
    statements: list[Stated] = field(default_factory=list[Stated])
    count: int = 0
    """Statements of all kinds."""
    errors: list[Diagnostic] = field(default_factory=list[Diagnostic])

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": self.name,
            "definitions": [c.as_dict() for c in self.claims],
            "statements": [asdict(s) for s in self.statements],
            "errors": len(self.errors),
        }


def check_file(source: SourceText, folder: Path) -> Checked:
    """Check the rules and statements of one text; used files are looked for in ``folder``."""
    checked = Checked(source.name)
    try:
        spec = resolve(parse(source), disk_reader(folder), prelude())
        checked.count = len(spec.statements)
        definitions = [
            spec.scope.require(item.name, item.name_span)
            for item in spec.file.items
            if isinstance(item, syntax.Method | syntax.Block)
        ]
        checked.claims = [claims_of(d) for d in definitions]
        checked.statements = list(stated(spec))
    except SurgeryError as found:
        checked.errors = list(found.diagnostics)
    return checked


def report(checked: Sequence[Checked]) -> str:
    """All files as text; its last line says how many there were."""
    parts: list[str] = []
    for file in checked:
        rows = [("  broken", some(len(file.errors), "error"))] if file.errors else []
        rows += [(f"  ok {c.kind} {c.name}", c.starts, c.merges) for c in file.claims]
        rows += [_statement(s) for s in file.statements]
        if not rows:
            rows = [("  ok", some(file.count, "statement"))]
        parts.append("\n".join([file.name, *aligned(rows)]))
    broken = sum(len(f.errors) for f in checked)
    definitions = sum(len(f.claims) for f in checked)
    statements = sum(f.count for f in checked)
    found = f"{some(definitions, 'definition')}, {some(statements, 'statement')}"
    verdict = some(broken, "error") if broken else "no errors"
    return "\n".join([*parts, f"{some(len(checked), 'file')}: {found}, {verdict}."])


def _statement(s: Stated) -> tuple[str, ...]:
    ends = merging(s.merge, s.brings_bias) if s.merge else f"cannot be merged: {s.reason}"
    return (f"  ok {s.method}", s.starts, ends)
