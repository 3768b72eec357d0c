"""The results as a summary for the screen and as a document."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.architectures.catalogue import TASKS
from benchmarks.architectures.columns import COLUMNS, PEER_MODELS

Results = Mapping[str, Mapping[str, Any]]
_MARKS = {"good": "✓", "no place": "–"}


def summary(results: Results, columns: Sequence[str]) -> Table:
    """Good of those that could be, for each column and task."""
    drawing = Table(box=box.SIMPLE_HEAD)
    drawing.add_column("")
    for task in TASKS:
        drawing.add_column(f"{task} ({_running(results, task)} run)", justify="right")
    for name in columns:
        counts = [_counted(results, task, name) for task in TASKS]
        drawing.add_row(COLUMNS[name].title, *map(_share, counts))
    return drawing


def document(results: Results) -> str:
    """The page of docs/."""
    lines = [_OPENING.strip(), "", *_figures(results)]
    for task in TASKS:
        lines += ["", f"## {_HEADINGS[task]}", "", *_rows(results, task)]
    lines += ["", "## Why not", "", *_listed(_reasons(results, "failed"))]
    lines += ["", "## No place", "", *_listed(_reasons(results, "no place"))]
    lines += ["", "## Left out", "", "They do not run by themselves:", ""]
    lines += [
        f"- `{key}`: {result['reason']}" for key, result in results.items() if not result["runs"]
    ]
    return "\n".join(lines) + "\n"


_OPENING = """
# Architectures

Every causal language model, sequence classifier and sequence-to-sequence model of transformers that
runs on text, as a tiny random model, under the specs at the head of the columns. The page is written
by `python -m benchmarks.architectures --write`.

A spec is good for a model (✓) if every parameter it adds gets a finite gradient that is not all zero,
if these parameters, randomised, change the output in training and in evaluation, and if removing
them gives back the output of the base to the bit. A parameter is excused where the base's own weights
get no gradient either: an expert that no token was sent to. Else the table has the code of the error,
or ✗ for what was not kept; – marks a method that has no place in the architecture. HF PEFT's figures
are those of its version 0.21 on its own list of the same three tasks.
"""

_HEADINGS = {
    "causal": "Causal language models",
    "classification": "Sequence classification",
    "seq2seq": "Sequence to sequence",
}


def _figures(results: Results) -> list[str]:
    heads = [f"{_HEADINGS[task]} ({_running(results, task)})" for task in TASKS]
    lines = [
        "| spec | " + " | ".join(heads) + " | HF PEFT of " + _triple(PEER_MODELS) + " |",
        "|---|" + "---:|" * (len(TASKS) + 1),
    ]
    for column in COLUMNS.values():
        shares = [_share(_counted(results, task, column.name)) for task in TASKS]
        peer = _triple(column.peer) if column.peer else "none"
        spec = column.spec.replace("|", "\\|")
        lines.append(f"| {column.title}: `{spec}` | " + " | ".join(shares) + f" | {peer} |")
    return lines


def _rows(results: Results, task: str) -> list[str]:
    """The names of those for which all is good, and a table of the others."""
    good: list[str] = []
    others: list[str] = []
    for key, result in sorted(results.items()):
        if not key.startswith(task + "/") or not result["runs"]:
            continue
        name = f"`{key.partition('/')[2]}`"
        cells = [_cell(result["cells"].get(column)) for column in COLUMNS]
        if all(cell == _MARKS["good"] for cell in cells):
            good.append(name)
        else:
            others.append(f"| {name} | " + " | ".join(cells) + " |")
    lines = [f"All of it on {len(good)}: {', '.join(good)}."]
    if not others:
        return lines
    head = "| architecture | " + " | ".join(column.title for column in COLUMNS.values()) + " |"
    return [*lines, "", head, "|---|" + ":---:|" * len(COLUMNS), *others]


def _cell(cell: Mapping[str, str] | None) -> str:
    if cell is None:
        return ""
    known = cell["code"] if re.fullmatch(r"S\d+", cell["code"]) else "✗"
    return _MARKS.get(cell["verdict"]) or known


def _reasons(results: Results, verdict: str) -> dict[str, list[str]]:
    """The architectures and columns of each reason."""
    found: dict[str, list[str]] = {}
    for key, result in results.items():
        for name, cell in result["cells"].items():
            if cell["verdict"] == verdict:
                reason = " ".join(filter(None, (cell["code"], cell["reason"])))
                found.setdefault(reason, []).append(f"`{key}` {COLUMNS[name].title}")
    return found


def _listed(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"- {reason}: {', '.join(places)}" for reason, places in reasons.items()]


def _counted(results: Results, task: str, column: str) -> Counter[str]:
    cells = [
        result["cells"][column]["verdict"]
        for key, result in results.items()
        if key.startswith(task + "/") and column in result["cells"]
    ]
    return Counter(cells)


def _share(counts: Counter[str]) -> str:
    possible = counts["good"] + counts["failed"]
    apart = f" (and {counts['no place']} without a place)" if counts["no place"] else ""
    return f"{counts['good']} of {possible}{apart}"


def _running(results: Results, task: str) -> int:
    return sum(r["runs"] for key, r in results.items() if key.startswith(task + "/"))


def _triple(counts: tuple[int, int, int]) -> str:
    return " / ".join(map(str, counts))
