"""`check` and `fmt` as Typer reads them; `texts.py` has what they do."""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli import texts
from surgery.cli.arguments import Json
from surgery.cli.commands import READING, add

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Files, or directories that contain .peft files; - is stdin.",
        show_default=False,
    ),
]


def register(application: typer.Typer) -> None:
    """Add the commands with their examples."""
    add(
        application,
        READING,
        check,
        "check spec.peft",
        "check specs/ rules/",
        "check - < spec.peft",
        notes="Exit codes: 0 if there is no error, else 1.",
    )
    add(
        application,
        READING,
        fmt,
        "fmt spec.peft",
        "fmt --check specs/",
        notes="Exit codes: 0; 1 if a file cannot be read, or --check finds one to change.",
    )


def check(paths: Paths, as_json: Json = False) -> int:
    """Check specs and rules without a model.

    Every error of every file is reported, and what is derived from its rules.
    """
    return texts.check(paths, as_json)


def fmt(
    paths: Paths,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if a file would change.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Write nothing; print what would change.")
    ] = False,
) -> int:
    """Format specs and rules in place."""
    return texts.fmt(paths, check, diff)
