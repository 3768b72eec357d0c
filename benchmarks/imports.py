"""How long a fresh process needs to import us, and to check a folder of specs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.harness import Settings, Table

ROOT = Path(__file__).resolve().parents[1]
BEYOND_TORCH = {
    "import surgery": ("import surgery", 0.2),
    "import surgery; surgery.apply": ("import surgery; surgery.apply", 0.2),
    "import peft": ("import peft", None),
}
CHECK = "python -m surgery check rules"


def run(settings: Settings) -> list[Table]:
    table = Table("Seconds of process time, fresh processes", (), "seconds")
    commands = {"import torch": ["-c", "import torch"], "python, nothing": ["-c", ""]}
    commands |= {n: ["-c", f"import torch; {code}"] for n, (code, _) in BEYOND_TORCH.items()}
    can_check = importlib.util.find_spec("surgery.__main__") is not None
    if can_check:
        commands[CHECK] = ["-m", "surgery", "check", "rules"]
    else:
        table.notes.append("There is no command line yet: nothing of it could be measured.")
    commands["read every rule"] = [
        "-c",
        "from pathlib import Path; from surgery.planning.spec import read_spec\n"
        "for path in Path('rules').glob('*.peft'): read_spec(path)",
    ]
    seconds = _medians(commands, settings.rounds(12))
    torch_alone = seconds["import torch"]
    for name, (_, aim) in BEYOND_TORCH.items():
        if seconds[name] is None or torch_alone is None:
            table.notes.append(f"`{name}` fails here.")
            continue
        beyond = max(0.0, seconds[name] - torch_alone)
        table.add(f"{name}, beyond torch", judged=beyond, aim=aim)
    for name in ("import torch", "python, nothing", "read every rule", CHECK):
        if name in seconds:
            table.add(name, judged=seconds[name], aim=0.3 if name == CHECK else None)
    return [table]


def _medians(commands: dict[str, list[str]], rounds: int) -> dict[str, float | None]:
    """The median time of each command, taken in turns; None for one that fails."""
    found: dict[str, list[float | None]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, arguments in commands.items():
            taken = _seconds(arguments)
            if turn:  # the first finds no compiled files
                found[name].append(taken)
    return {
        name: None if None in times else median(t for t in times if t is not None)
        for name, times in found.items()
    }


def _seconds(arguments: list[str]) -> float | None:
    """User and system time of one Python process, or None if it fails."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    after = os.times()
    spent = after.children_user + after.children_system
    return None if done.returncode else spent - before.children_user - before.children_system
