"""Processes that save again and again and are killed meanwhile: run by `test_killed_saves.py`.

`python -m tests.graft.killed_saves FOLDER ROUNDS` prints what was found after each kill, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import surgery
from surgery.models import save_model

WIDTH = 256


def adapted(value: float) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    surgery.apply(model, f"on Linear apply lora(r = {WIDTH})", seed=0)
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.fill_(value)
    return model


def killed(work: Callable[[], object], after: float) -> None:
    """Have a process do ``work`` again and again, and kill it ``after`` some seconds."""
    child = os.fork()
    if not child:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def timed(work: Callable[[], object]) -> float:
    """How many seconds ``work`` takes here, so that kills come at any of its moments."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def partial(folder: Path) -> int:
    return sum(p.name.startswith(".surgery-") for p in folder.iterdir())


def adapters(folder: Path, rounds: int, delay: random.Random) -> Counter[str]:
    """What the file holds after each kill of a process that saves two versions in turn."""
    models = [adapted(1), adapted(2)]
    path = surgery.save(models[0], folder / "it.safetensors")
    found: Counter[str] = Counter()

    def both() -> None:
        for model in models[::-1]:
            surgery.save(model, path)

    pair = timed(both)
    for _ in range(rounds):
        killed(both, delay.uniform(0, 2 * pair))
        base = surgery.remove(adapted(0))
        values = {
            float(p.detach().mean()) for p in surgery.trainable(surgery.load(base, path)).values()
        }
        found[str(sorted(values))] += 1
        found["most left behind"] = max(found["most left behind"], partial(folder))
    surgery.save(models[0], path)
    found["left behind"] = partial(folder)
    return found


def together(folder: Path) -> Counter[str]:
    """What two processes leave that save to one path at once."""
    versions = [adapted(1), adapted(2)]
    children: list[int] = []
    for model in versions:
        child = os.fork()
        if not child:
            try:
                for _ in range(10):
                    surgery.save(model, folder / "new" / "it.safetensors")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    base = surgery.load(surgery.remove(adapted(0)), folder / "new" / "it.safetensors")
    values = {float(p.detach().mean()) for p in surgery.trainable(base).values()}
    return Counter({str(sorted(values)): 1, "failed": sum(map(bool, ends))})


def models(folder: Path, rounds: int, delay: random.Random) -> Counter[str]:
    """Whether a model is there whole or not at all after each kill of a process that writes it."""
    model, found = surgery.remove(adapted(0)), Counter[str]()
    once = timed(lambda: save_model(model, folder / "first"))
    for number in range(rounds):
        target = folder / f"{number}"
        killed(lambda target=target: save_model(model, target), delay.uniform(0, 3 * once))
        files = sorted(p.name for p in target.glob("[!.]*")) if target.exists() else None
        found[str(files)] += 1
    save_model(model, folder / "last")
    found["left behind"] = partial(folder)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    for part in ("adapters", "models", "together"):
        (folder / part).mkdir()
    found = [
        adapters(folder / "adapters", rounds, random.Random(0)),
        models(folder / "models", rounds, random.Random(1)),
        together(folder / "together"),
    ]
    print(json.dumps(found))
