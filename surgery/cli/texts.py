"""`check` and `fmt`: commands that read texts only, and so start at once."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from surgery.cli import FAILED, FINE
from surgery.cli.arguments import Json
from surgery.cli.screen import complain, problem, show, show_json
from surgery.language.diagnostics import Diagnostic, SurgeryError, error
from surgery.language.source import Source

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS…",
        help="Files, or directories with .peft files in them; - is stdin.",
        show_default=False,
    ),
]


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command("check")(check)
    application.command("fmt")(fmt)


def check(paths: Paths, as_json: Json = False) -> int:
    """Check specs and rules without a model: every error of every file, and what rules promise."""
    from surgery.cli.checking import Checked, check_file, report

    checked: list[Checked] = []
    for path in _files(paths):
        try:
            checked.append(check_file(_read(path), Path(path).parent))
        except SurgeryError as found:
            checked.append(Checked(path, errors=list(found.diagnostics)))
    errors = [d for c in checked for d in c.errors]
    if as_json:
        show_json({"files": [c.as_dict() for c in checked], "errors": [problem(d) for d in errors]})
    else:
        show(report(checked))
        if errors:
            complain(errors)
    return FAILED if errors else FINE


def fmt(
    paths: Paths,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if a file would change.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Write nothing; print what would change.")
    ] = False,
) -> int:
    """Lay out specs and rules in the one canonical way, in place."""
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
            print(after, end="")
        elif after != source.text:
            changed += 1
            _change(path, source.text, after, check, diff)
    if problems:
        complain(problems)
    return FAILED if problems or (check and changed) else FINE


def _change(path: str, before: str, after: str, check: bool, diff: bool) -> None:
    if diff:
        lines = before.splitlines(True), after.splitlines(True)
        show("".join(difflib.unified_diff(*lines, path, path)).rstrip("\n"))
    elif check:
        print(f"would change {path}")
    else:
        _write(Path(path), after)
        print(f"changed {path}")


def _files(paths: list[str]) -> Iterator[str]:
    for path in paths:
        if path != "-" and Path(path).is_dir():
            found = sorted(Path(path).rglob("*.peft"))
            if not found:
                raise error("S510", f"there are no .peft files in `{path}`")
            yield from map(str, found)
        else:
            yield path


def _read(path: str) -> Source:
    if path == "-":
        return Source("<stdin>", sys.stdin.read())
    try:
        # Line ends stay as they are: what is written must differ from what is read.
        with open(path, encoding="utf-8", newline="") as file:
            return Source(path, file.read())
    except UnicodeDecodeError as fault:
        raise error("S510", f"cannot read `{path}`: {fault}") from None
    except OSError as fault:
        raise error("S510", f"cannot read `{path}`: {fault.strerror or fault}") from None


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole; a killed run leaves the old one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        draft.chmod(path.stat().st_mode)
        draft.replace(path)
    except OSError as fault:
        draft.unlink(missing_ok=True)
        raise error("S509", f"cannot write `{path}`: {fault.strerror or fault}") from None
