"""`check` and `fmt` as Typer reads them; `texts.py` has what they do."""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli import texts
from surgery.cli.arguments import Json

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS…",
        help="Files, or directories that contain .peft files; - is stdin.",
        show_default=False,
    ),
]


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command("check")(check)
    application.command("fmt")(fmt)


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
