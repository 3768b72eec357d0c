"""What `--help` tells: every command in a group, examples that are commands, all exit codes."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from surgery.cli import exit_codes
from surgery.cli.application import application
from surgery.cli.commands import GROUPS

_GROUP: Any = typer.main.get_command(application)
COMMANDS: dict[str, Any] = _GROUP.commands


def examples(name: str) -> list[list[str]]:
    lines = (COMMANDS[name].epilog or "").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("  surgery ")]


def test_every_command_is_in_a_group(run: Any) -> None:
    sections = run("--help").out
    assert {command.rich_help_panel for command in COMMANDS.values()} == set(GROUPS)
    assert all(f"{group}:\n" in sections for group in GROUPS)
    for name, command in COMMANDS.items():
        after = sections.partition(f"{command.rich_help_panel}:\n")[2].partition("\n\n")[0]
        assert f"  {name} " in after


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_read_as_they_stand(name: str) -> None:
    """Each is a call of its command that Typer accepts, with no option or argument unknown."""
    assert examples(name)
    for _, command, *words in examples(name):
        assert command == name
        end = next((i for i, word in enumerate(words) if word in "<>|"), len(words))
        COMMANDS[name].make_context(name, words[:end])


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_a_terminal(name: str | None, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*([name] if name else []), "--help").out
    assert max(map(len, shown.splitlines())) <= 80


def test_exit_codes_are_all_told(run: Any) -> None:
    told = run("--help").out.partition("Exit codes:\n")[2].partition("\n\n")[0]
    codes = {value for value in vars(exit_codes).values() if isinstance(value, int)}
    assert {int(line.split()[0]) for line in told.splitlines()} == codes
