"""Runs seeded cases of a fuzzer, one after another, and remembers how far it came.

A fuzzer is a function of a random generator. It returns a label of how its case ended, which are
counted, and raises for a broken promise. Case i of seed s is always the same, so a failure is
repeated by its number alone.
"""

from __future__ import annotations

import json
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

Case = Callable[[random.Random], str]
PATIENCE = 30


class TooSlow(BaseException):
    """A case took longer than its limit; no `except Exception` may swallow it."""


@dataclass
class Tally:
    """What came of the cases of one seed so far."""

    seed: int
    done: int = 0
    seconds: float = 0.0
    labels: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(vars(self)), encoding="utf-8")
        temporary.replace(path)

    @staticmethod
    def read(path: Path, seed: int) -> Tally:
        """What ``path`` remembers of ``seed``; nothing if it is of another."""
        if not path.exists():
            return Tally(seed)
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["seed"] != seed:
            return Tally(seed)
        failures = {int(number): text for number, text in known["failures"].items()}
        return Tally(seed, known["done"], known["seconds"], Counter(known["labels"]), failures)


def generator(seed: int, number: int) -> random.Random:
    """The random numbers of case ``number``."""
    return random.Random(f"{seed}/{number}")


def attempt(case: Case, seed: int, number: int, limit: float) -> tuple[str, str | None]:
    """Run one case: its label, and a traceback if it failed."""
    try:
        with limited(limit):
            return case(generator(seed, number)), None
    except TooSlow:
        return "too slow", f"took more than {limit:g} s\n{traceback.format_exc(limit=-6)}"
    except Exception as problem:
        return f"failed: {type(problem).__name__}", traceback.format_exc(limit=-12)


def go_on(case: Case, tally: Tally, until: int, limit: float) -> Generator[Tally]:
    """Run cases until ``until`` are done; yields after each."""
    while tally.done < until:
        start = time.perf_counter()
        label, failure = attempt(case, tally.seed, tally.done, limit)
        tally.seconds += time.perf_counter() - start
        tally.labels[label] += 1
        if failure is not None:
            tally.failures[tally.done] = failure
        tally.done += 1
        yield tally


@contextmanager
def limited(seconds: float) -> Generator[None]:
    """Raise :class:`TooSlow` inside if it computes for ``seconds``, or waits for far longer."""

    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise TooSlow

    # Of its own time: a busy machine makes nothing slow.
    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE * seconds),
    )
    before = [signal.signal(kind, stop) for kind, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (kind, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(kind, handler)
