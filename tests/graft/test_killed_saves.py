"""kill -9 at any moment of a save leaves the old file or the new one; two may save at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def rounds(folder: Path, count: int, root: Path) -> list[dict[str, int]]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.graft.killed_saves",
        str(folder),
        str(count),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def check(folder: Path, count: int, root: Path) -> dict[str, int]:
    adapters, models, together = rounds(folder, count, root)
    assert together.pop("failed") == 0
    assert together.keys() <= {"[1.0]", "[2.0]"}
    assert adapters.pop("left behind") == models.pop("left behind") == 0
    assert adapters.pop("most left behind") <= 1
    assert adapters.keys() <= {"[1.0]", "[2.0]"}
    assert models.keys() <= {"None", "['model.safetensors']"}
    assert sum(adapters.values()) == sum(models.values()) == count
    return adapters


def test_a_killed_save_leaves_the_old_file_or_the_new_one(tmp_path: Path, root: Path) -> None:
    check(tmp_path, 5, root)


@pytest.mark.slow
def test_many_killed_saves(tmp_path: Path, root: Path) -> None:
    assert len(check(tmp_path, 100, root)) == 2
