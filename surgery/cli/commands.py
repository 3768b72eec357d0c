"""How the commands are listed and explained: in groups, each with examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

LOOKING = "Look at a model (nothing is changed or written)"
WRITING = "Write adapters and models"
READING = "Work on specs and rules (no model needed)"
GROUPS = (LOOKING, WRITING, READING)


class GroupedCommands(TyperGroup):
    """A command line whose help lists the commands by what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group, in the order of :data:`GROUPS`."""
        widest = max(map(len, self.commands))
        limit = formatter.width - 6 - widest
        for group in GROUPS:
            rows = [
                (name.ljust(widest), command.get_short_help_str(limit))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == group
            ]
            with formatter.section(group):
                formatter.write_dl(rows)


def add(
    application: typer.Typer,
    group: str,
    command: Callable[..., Any],
    *examples: str,
    notes: str = "",
) -> None:
    """Add ``command`` under its own name, with lines of ``examples`` and ``notes`` in its help."""
    lines = ["Examples:", *(f"  surgery {example}" for example in examples)]
    # `\b` keeps the lines of a paragraph as they are.
    parts = ["\b\n" + "\n".join(lines), *([notes] if notes else [])]
    name = command.__name__
    application.command(name, epilog="\n\n".join(parts), rich_help_panel=group)(command)
