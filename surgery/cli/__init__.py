"""The command `surgery`."""

from __future__ import annotations

from collections.abc import Sequence

FINE, FAILED, CHANGED, MISUSED = 0, 1, 2, 64
"""Exit codes: all well; an error, or a promise broken; `diff --exit-code` found changes; usage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; errors go to stderr, without a traceback."""
    from surgery.cli.application import run

    return run(arguments)
