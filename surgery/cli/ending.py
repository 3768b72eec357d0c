"""How every command ends: its errors told, its output written, its exit code."""

from __future__ import annotations

from collections.abc import Callable

from surgery.cli.exit_codes import FAILED, UNREAD
from surgery.cli.screen import OutputError, complain, finish, prepare, silence
from surgery.language.diagnostics import SurgeryError


def ended(command: Callable[[], int]) -> int:
    """Run ``command``; its exit code, or that of what went wrong."""
    prepare()
    try:
        code = _told(command)
        finish()
    except BrokenPipeError:
        silence()
        return UNREAD
    except SystemExit:  # so click ends where nobody reads what it printed
        silence()
        return UNREAD
    except OutputError as problem:
        silence()
        complain([problem.diagnostic])
        return FAILED
    return code


def _told(command: Callable[[], int]) -> int:
    try:
        return command()
    except SurgeryError as found:
        complain(found.diagnostics)
        return FAILED
    except OSError as problem:
        if problem.filename is not None or isinstance(problem, BrokenPipeError):
            raise
        raise OutputError(problem) from None
