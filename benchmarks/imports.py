"""How long a fresh process needs to import us, and to check a folder of specs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

from benchmarks.harness import Settings, Table

ROOT = Path(__file__).resolve().parents[1]
BEYOND_TORCH = {
    "import surgery": ("import surgery", 0.2),
    "import surgery; surgery.apply": ("import surgery; surgery.apply", 0.2),
    "import peft": ("import peft", None),
}
WHOLE = {
    "python -m surgery check rules": (("-m", "surgery", "check", "rules"), 0.3),
    "python -m surgery --help": (("-m", "surgery", "--help"), None),
    "read every rule, without the command line": (
        (
            "-c",
            "from pathlib import Path; from surgery.planning.spec import read_spec\n"
            "for path in sorted(Path('rules').glob('*.peft')): read_spec(path)",
        ),
        None,
    ),
    "python -c 'import torch'": (("-c", "import torch"), None),
}


def run(settings: Settings) -> list[Table]:
    rounds = settings.rounds(12)
    beyond = Table("Imports in a fresh process, beyond what `import torch` takes", (), "seconds")
    inside = _medians({n: lambda c=c: _importing(c) for n, (c, _) in BEYOND_TORCH.items()}, rounds)
    for name, (_, aim) in BEYOND_TORCH.items():
        beyond.add(name, judged=inside[name], aim=aim)
    whole = Table("Whole processes", (), "seconds")
    outside = _medians({n: lambda a=a: _whole(a) for n, (a, _) in WHOLE.items()}, rounds)
    for name, (_, aim) in WHOLE.items():
        whole.add(name, judged=outside[name], aim=aim)
    for table, seconds in ((beyond, inside), (whole, outside)):
        failing = [name for name, found in seconds.items() if found is None]
        table.notes += [f"Nothing could be measured: `{name}` fails here." for name in failing]
    whole.notes.append("Process time, user and system, of the process and what it starts.")
    return [beyond, whole]


def _medians(
    calls: Mapping[str, Callable[[], float | None]], rounds: int
) -> dict[str, float | None]:
    """The median of each, taken in turns; None for one that fails."""
    found: dict[str, list[float]] = {}
    for name, call in calls.items():
        if call() is not None:  # the first finds no compiled files, and does not count
            found[name] = []
    for _ in range(rounds):
        for name, seconds in found.items():
            seconds.append(calls[name]() or 0.0)
    return {name: median(found[name]) if name in found else None for name in calls}


def _importing(code: str) -> float | None:
    """Process time that ``code`` takes once torch is there, or None if it fails."""
    script = (
        "import time, torch\n"
        "start = time.process_time()\n"
        f"{code}\n"
        "print('seconds', time.process_time() - start)"
    )
    done = _python("-c", script)
    return None if done.returncode else float(done.stdout.rpartition("seconds")[2])


def _whole(arguments: tuple[str, ...]) -> float | None:
    """Process time of one Python process, or None if it fails."""
    before = getrusage(RUSAGE_CHILDREN)
    done = _python(*arguments)
    after = getrusage(RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return None if done.returncode else spent


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
