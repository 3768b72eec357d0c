"""What goes to the terminal: results to stdout, all else to stderr; colour only where it is seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from surgery.language.diagnostics import Diagnostic, render


def show(text: str) -> None:
    """Print a result, in colour on a terminal."""
    _print(text, error=False)


def show_json(data: Any) -> None:
    """Print data as JSON."""
    print(json.dumps(data, indent=1, ensure_ascii=False))


def complain(diagnostics: Iterable[Diagnostic]) -> None:
    """Print errors and warnings with their carets to stderr."""
    if found := [render(d) for d in diagnostics]:
        _print("\n\n".join(found), error=True)


def _print(text: str, error: bool) -> None:
    stream = sys.stderr if error else sys.stdout
    if not stream.isatty():
        print(text, file=stream)
        return
    from rich.console import Console

    from surgery.reports.terminal import painted

    Console(stderr=error, highlight=False).print(painted(text), soft_wrap=True)


@contextmanager
def working(what: str) -> Generator[Callable[[str], None]]:
    """Show that something takes a while; the function that it gives changes the text."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …") as status:
        yield lambda text: status.update(f"{text} …")


def problem(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as JSON data."""
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
