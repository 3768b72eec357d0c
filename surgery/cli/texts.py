"""What `check` and `fmt` do. They read texts only, and start at once: nothing here imports Typer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from surgery.cli.exit_codes import FAILED, FINE
from surgery.cli.screen import complain, show, show_json
from surgery.language.diagnostics import Diagnostic, SurgeryError, error
from surgery.language.resources import NoTextError, decoded, read_text
from surgery.language.source import LINE_END, SourceText
from surgery.language.writing import replacing


def check(paths: list[str], as_json: bool = False) -> int:
    """Check the files at ``paths`` and print what is found; the exit code."""
    from surgery.cli.checking import Checked, check_file, report
    from surgery.reports.data import VERSION, problem

    checked: list[Checked] = []
    for path in _files(paths):
        try:
            checked.append(check_file(_read(path), Path(path).parent))
        except SurgeryError as found:
            checked.append(Checked(path, errors=list(found.diagnostics)))
    errors = [d for c in checked for d in c.errors]
    if as_json:
        files, problems = [c.as_dict() for c in checked], [problem(d) for d in errors]
        show_json({"version": VERSION, "files": files, "errors": problems})
    else:
        show(report(checked))
        if errors:
            complain(errors)
    return FAILED if errors else FINE


def fmt(paths: list[str], check: bool = False, diff: bool = False) -> int:
    """Lay out the files at ``paths``, or with ``check`` or ``diff`` only tell; the exit code."""
    from surgery.language.format import format_text

    problems: list[Diagnostic] = []
    changed = 0
    for path in _files(paths):
        try:
            source = _read(path)
            after = format_text(source, source.name)
        except SurgeryError as found:
            problems += found.diagnostics
            continue
        if path == "-" and not (check or diff):
            show(after, end="")
        elif after != source.text:
            changed += 1
            _change(path, source.text, after, check, diff)
    if problems:
        complain(problems)
    return FAILED if problems or (check and changed) else FINE


def _change(path: str, before: str, after: str, check: bool, diff: bool) -> None:
    if diff:
        import difflib

        lines = _lines(before), _lines(after)
        show("".join(difflib.unified_diff(*lines, path, path)).rstrip("\n"))
    elif check:
        show(f"would change {path}")
    else:
        with replacing(path) as file:
            file.write(after.encode())
        show(f"changed {path}")


def _lines(text: str) -> list[str]:
    """The lines of ``text`` with what ends them."""
    ends = [found.end() for found in LINE_END.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)]) if start < end]


def _files(paths: list[str]) -> Iterator[str]:
    for path in paths:
        if path != "-" and Path(path).is_dir():
            found = sorted(Path(path).rglob("*.peft"))
            if not found:
                raise error("S510", f"there are no .peft files in `{path}`")
            yield from map(str, found)
        else:
            yield path


def _read(path: str) -> SourceText:
    try:
        if path == "-":
            return SourceText("<stdin>", _stdin())
        return SourceText(path, read_text(Path(path)))
    except NoTextError as problem:
        raise error("S510", f"cannot read `{path}`: {problem}") from None


def _stdin() -> str:
    """All of stdin, which is UTF-8 whatever the terminal is."""
    # A process without a console has none, whatever its type says.
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise NoTextError("stdin is closed")
    raw: Any = getattr(sys.stdin, "buffer", None)
    try:
        data: Any = (raw or sys.stdin).read()
    except (OSError, ValueError) as problem:
        raise NoTextError(str(problem)) from None
    return data if raw is None else decoded(data)
