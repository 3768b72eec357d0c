"""`python -m tests.fuzz`: run the fuzzers for minutes or hours, and go on where they stopped.

A failure is printed with the command that repeats its case alone.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.fuzz.harness import Case, Tally, attempt, go_on

FUZZERS = tuple(
    sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))
)
console = Console(highlight=False)


def fuzzer(name: str) -> tuple[Case, float]:
    """The case of a fuzzer, and how many seconds one may take."""
    module = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    return module.case, module.LIMIT


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which fuzzers; all if none.")] = None,
    count: Annotated[int, typer.Option(help="Cases of each, those of earlier runs included.")] = 0,
    minutes: Annotated[float, typer.Option(help="Minutes for each, if no count is given.")] = 3,
    seed: Annotated[int, typer.Option(help="Which series of cases.")] = 0,
    only: Annotated[int | None, typer.Option(help="Run this one case and show all of it.")] = None,
    memory: Annotated[Path, typer.Option(help="Where it is kept how far they came.")] = Path(
        ".fuzz"
    ),
) -> None:
    """Try random rules, texts, operations and damaged files until one breaks a promise."""
    torch.set_num_threads(1)
    chosen = names or list(FUZZERS)
    unknown = [name for name in chosen if name not in FUZZERS]
    if unknown:
        console.print(f"no fuzzer is named {unknown[0]}; there are {', '.join(FUZZERS)}")
        raise typer.Exit(2)
    if only is not None:
        failed = [name for name in chosen if not alone(name, seed, only)]
    else:
        failed = [name for name in chosen if not run(name, seed, count, minutes, memory)]
    raise typer.Exit(1 if failed else 0)


def alone(name: str, seed: int, number: int) -> bool:
    """Run one case and show how it ends."""
    case, limit = fuzzer(name)
    label, failure = attempt(case, seed, number, limit)
    console.print(f"{name} {number}: {label}", markup=False)
    if failure:
        console.print(failure, markup=False)
    return failure is None


def run(name: str, seed: int, count: int, minutes: float, memory: Path) -> bool:
    """Run a fuzzer, from where it stopped last."""
    case, limit = fuzzer(name)
    path = memory / f"{name}-{seed}.json"
    tally = Tally.read(path, seed)
    end = time.monotonic() + 60 * minutes
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name)
        for _ in go_on(case, tally, count or sys.maxsize, limit):
            if tally.done % 20 == 0:
                text = f"{name}: {tally.done} cases, {len(tally.failures)} failed"
                progress.update(task, description=text)
            if tally.done % 500 == 0:
                tally.save(path)
            if not count and time.monotonic() > end:
                break
    tally.save(path)
    report(name, tally)
    return not tally.failures


def report(name: str, tally: Tally) -> None:
    """Print what came of all cases, and each failure's last line with how to repeat it."""
    head = f"{name}: {tally.done} cases, {len(tally.failures)} failed, {tally.seconds:.0f} s"
    console.print(head, markup=False)
    for label, times in tally.labels.most_common(40):
        console.print(f"  {times:8} {label}", markup=False)
    for number, text in list(tally.failures.items())[:20]:
        last = text.strip().splitlines()[-1]
        command = f"python -m tests.fuzz {name} --seed {tally.seed} --only {number}"
        console.print(f"  {command}\n    {last}", markup=False)


if __name__ == "__main__":
    typer.run(main)
