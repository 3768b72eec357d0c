"""What prefixes and UniPELT add to a model's forward and training step, beside `adapters`.

    python -m benchmarks.adapters_peer [--peer-python ADAPTERS/bin/python] [METHOD...]

The library `adapters` pins a `transformers` older than the one in use here, so it runs in an
interpreter of its own: `tests/peers/adapters/make.py` says how to make one. Each side is a process
(`adapters_worker.py`) with the same base; they take turns, call by call, and each is compared with
the base in its own environment. Without ``--peer-python`` there is one side.

In GPT-2 with `sdpa` attention the prefixes of `adapters` 1.3.0 are masked out. They cost what they
would cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness import NothingMeasuredError, Settings, Table, Timing

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"bert": "BERT", "gpt2": "GPT-2"}
METHODS = {
    "lora": "on up|down apply lora(8)",
    "prefix": "on attention apply prefix(30)",
    "unipelt": "unipelt",
}
# q and v are rows of one layer there, so each has a graft of its own on that layer.
FUSED = """
on attention gated prefix_mlp(10, m = 512)
on qkv gated lora(8) as q
on qkv gated lora(8) as v
on mlp pfeiffer weighted adapter(reduction = 16)
"""
CASES = ("forward", "step")


class Side:
    """A worker: a process that holds a base and an adapted model, and times them."""

    def __init__(self, python: str, *arguments: str) -> None:
        self._errors = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (as long as the worker)
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks/adapters_worker.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            text=True,
            encoding="utf-8",
        )
        self.about = self._answer()
        self._found: dict[str, list[float]] = {name: [] for name in self.about["calls"]}

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()
        self._errors.close()

    def measure(self, case: str) -> None:
        """Have ``case`` run once more."""
        assert self._process.stdin is not None
        asked = {"case": case, "calls": self.about["calls"][case]}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        self._found[case].append(self._answer()["seconds"])

    def timing(self, case: str) -> Timing:
        return Timing(tuple(self._found[case]))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            self._errors.seek(0)
            lines = self._errors.read().splitlines()
            found = [line for line in lines if "Error: " in line] or lines
            raise NothingMeasuredError(found[-1] if found else "a worker ended without a word")
        return json.loads(line)


def measured(
    model: str,
    method: str,
    attention: str,
    spec: str,
    peer_python: str | None,
    settings: Settings,
) -> tuple[list[Side], list[str]]:
    """The sides, after all rounds: ours, and the peer's if there is one; and what to note."""
    with ExitStack() as stack:
        chosen = (model, method, attention)
        sides = [stack.enter_context(Side(sys.executable, "surgery", *chosen, spec))]
        if peer_python:
            sides.append(stack.enter_context(Side(peer_python, "adapters", *chosen)))
        for side in sides[1:]:
            _same_base(sides[0].about["base"], side.about["base"])
        turns = [
            (side, f"{name} {case}")
            for case in CASES
            for name in ("base", "adapted")
            for side in sides
        ]
        for turn in range(settings.rounds(24)):
            first = turn % len(turns)
            for side, case in turns[first:] + turns[:first]:
                side.measure(case)
    trained = " and ".join(f"{side.about['trained']:,}" for side in sides)
    return sides, [f"{MODELS[model]}, {method}: {trained} parameters train."]


def _same_base(ours: list[float], theirs: list[float]) -> None:
    """Stop if the two sides don't start from the same model and inputs."""
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if gap > 1e-3:
        raise NothingMeasuredError(f"the two bases compute different things (up to {gap:.2g})")


def add_rows(table: Table, model: str, method: str, sides: list[Side]) -> None:
    for case in CASES:
        bases = [side.timing(f"base {case}") for side in sides]
        wholes = [side.timing(f"adapted {case}") for side in sides]
        figures: list[float | None] = []
        for base, whole in zip(bases, wholes, strict=True):
            figures += [1e3 * base.median, whole.median / base.median]
        figures += [None] * (4 - len(figures))
        judged = None
        if len(sides) == 2:
            added = [w.over(b) for w, b in zip(wholes, bases, strict=True)]
            hidden = added[1] <= wholes[1].uncertainty(bases[1])
            judged = None if hidden else added[0] / added[1]
        table.add(f"{MODELS[model]}, {method}, {case}", *figures, judged=judged)


def main(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD]...", help=f"Of: {', '.join(METHODS)}.")
    ] = None,
    peer_python: Annotated[
        str | None, typer.Option(help="An interpreter that has `adapters`.")
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="What surgery applies, instead of the method's own text.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help=f"Of: {', '.join(MODELS)}; repeated for several.")
    ] = None,
    attention: Annotated[str, typer.Option(help="As `transformers` names it.")] = "sdpa",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure prefixes and UniPELT beside `adapters`, on one thread and in process time."""
    for chosen, known in ((methods, METHODS), (model, MODELS)):
        for name in chosen or ():
            if name not in known:
                raise typer.BadParameter(f"no `{name}`; there are {', '.join(known)}")
    table = Table(
        "What methods add to a model (256 wide, 6 layers, 8 × 128 tokens, float32)",
        ("base ms", "ours / base", "peer's base ms", "adapters / base"),
        "added, ours / adapters",
    )
    for name in model or MODELS:
        for method in methods or METHODS:
            fused = name == "gpt2" and method == "unipelt"
            text = spec or (FUSED if fused else METHODS[method])
            try:
                sides, notes = measured(name, method, attention, text, peer_python, Settings(quick))
            except NothingMeasuredError as reason:
                table.notes.append(f"{MODELS[name]}, {method}: nothing could be measured: {reason}")
                continue
            add_rows(table, name, method, sides)
            table.notes += notes
    if as_json:
        print(json.dumps(table.as_dict(), indent=1, ensure_ascii=False))
    else:
        console = Console()
        table.show(Console(width=max(console.width, 110)))


if __name__ == "__main__":
    typer.run(main)
