"""What all reports have in common as JSON data (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from surgery.language.diagnostics import Diagnostic

VERSION = 1
"""Raised when a key goes, or comes to mean something else; new keys do not raise it."""


def warned(diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    """Warnings, each with its first place."""
    return [
        {
            "code": d.code,
            "message": d.message,
            "place": str(d.labels[0].span) if d.labels else None,
            "help": d.help,
        }
        for d in diagnostics
    ]


def problem(diagnostic: Diagnostic) -> dict[str, Any]:
    """An error with all its places."""
    places: list[dict[str, Any]] = []
    for label in diagnostic.labels:
        line, column = label.span.source.position(label.span.start)
        where = {"file": label.span.source.name, "line": line, "column": column}
        places.append({**where, "text": label.span.text, "says": label.text})
    return {
        "severity": diagnostic.severity,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "places": places,
        "help": diagnostic.help,
    }
