"""The command `surgery`."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from functools import partial

from surgery.cli.exit_codes import STOPPED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; errors go to stderr, without a traceback."""
    try:
        from surgery.cli.ending import ended

        return ended(partial(_run, arguments))
    except KeyboardInterrupt:
        return STOPPED


def _run(arguments: Sequence[str] | None) -> int:
    command, *paths = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("check", "fmt") and paths and not any(map(_may_mean_more, paths)):
        # Importing Typer takes as long as checking a file.
        if arguments is None:
            # Looking for garbage, in a process that is over soon, takes a quarter of its time.
            gc.disable()
            atexit.register(gc.freeze)
        from surgery.cli import texts

        return texts.check(paths) if command == "check" else texts.fmt(paths)
    from surgery.cli.application import run

    return run(arguments)


def _may_mean_more(word: str) -> bool:
    """Whether a word may be an option, or what Typer expands on Windows."""
    return (word.startswith("-") and word != "-") or (os.name == "nt" and bool(set(word) & _WILD))


_WILD = set("*?[~$%")
