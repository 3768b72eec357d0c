"""What a command imports: those that read texts only must not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from surgery.cli import main
code = main(sys.argv[1:])
heavy = [m for m in ("torch", "transformers", "networkx", "safetensors", "rich") if m in sys.modules]
print(f"{code} {heavy}", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "examples"),
        ("fmt", "--check", "rules"),
        ("methods",),
        ("methods", "lora", "--json"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_commands_on_texts_import_no_torch(root: Path, words: tuple[str, ...]):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=root, capture_output=True, text=True
    )
    assert ran.stderr == "0 []\n", ran.stderr


def test_the_check_can_fail(root: Path):
    program = "import torch\n" + PROGRAM
    ran = subprocess.run(
        [sys.executable, "-c", program, "check", "rules"], cwd=root, capture_output=True, text=True
    )
    assert "torch" in ran.stderr


def test_python_runs_the_package(root: Path):
    command = [sys.executable, "-m", "surgery", "check", "examples"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_checking_and_formatting_wait_for_no_typer(root: Path):
    program = PROGRAM.replace('"torch"', '"torch", "typer", "pydantic"')
    for words in (("check", "rules"), ("fmt", "rules")):
        ran = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=root, capture_output=True, text=True
        )
        assert ran.stderr == "0 []\n", ran.stderr
