"""Commands run away from the checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run(*command: object, cwd: Path) -> str:
    """What a command prints, away from this environment's own settings; it must succeed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    ran = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{' '.join(words)}\n{ran.stdout}{ran.stderr}"
    return ran.stdout
