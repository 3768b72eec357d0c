"""The command `surgery`."""

from __future__ import annotations

from collections.abc import Sequence

FINE, FAILED, CHANGED, MISUSED, STOPPED, UNREAD = 0, 1, 2, 64, 130, 141
"""Exit codes: all well; an error, or a promise broken; `diff --exit-code` found changes; usage;
stopped by Ctrl-C; nobody reads the output any more, as behind `| head`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; errors go to stderr, without a traceback."""
    try:
        from surgery.cli.application import run

        return run(arguments)
    except KeyboardInterrupt:
        return STOPPED
