"""``python -m benchmarks.architectures``: what of the language works on which architecture."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.architectures.catalogue import Architecture, architectures
from benchmarks.architectures.columns import COLUMNS
from benchmarks.architectures.table import document, summary
from benchmarks.architectures.walking import Result, walk

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".benchmarks" / "architectures.json"
DOCUMENT = ROOT / "docs" / "architectures.md"


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="A name (`llama`), a task, or `task/name`.")
    ] = None,
    columns: Annotated[str, typer.Option(help="Which columns, between commas.")] = ",".join(
        COLUMNS
    ),
    jobs: Annotated[int, typer.Option(help="How many processes at a time.")] = 2,
    limit: Annotated[float, typer.Option(help="Seconds that one architecture may take.")] = 120,
    keep: Annotated[
        bool, typer.Option("--keep", help="Believe results of an earlier state of the code, too.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help=f"Write {DOCUMENT.name}.")] = False,
) -> None:
    """Try specs on every text architecture of transformers, tiny and random.

    Results are kept between runs; what has been tried with this very code is not tried again.
    """
    console = Console()
    named = [name.strip() for name in columns.split(",")]
    unknown = [name for name in named if name not in COLUMNS]
    if unknown:
        raise typer.BadParameter(f"no column `{unknown[0]}`; there are {', '.join(COLUMNS)}")
    chosen = [a for a in architectures() if not only or {a.key, a.name, a.task} & set(only)]
    known: dict[str, Result] = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    state = fingerprint()
    todo = [a for a in chosen if not _known(known.get(a.key), named, None if keep else state)]
    with Progress(
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("architectures", total=len(todo))
        for architecture, result in walk(todo, named, jobs, limit) if todo else ():
            _note(known, architecture, result, state)
            progress.console.print(_line(architecture, result), highlight=False, soft_wrap=True)
            progress.advance(bar)
    found = {a.key: known[a.key] for a in chosen if a.key in known}
    console.print(summary(found, named))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if write:
        DOCUMENT.write_text(document(found), encoding="utf-8")


def fingerprint() -> str:
    """One word for the state of the code that the results depend on."""
    import transformers

    digest = hashlib.sha256(transformers.__version__.encode())
    for pattern in ("surgery/**/*.py", "rules/*.peft", "benchmarks/architectures/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _known(result: Result | None, columns: list[str], state: str | None) -> bool:
    if result is None or (state is not None and result.get("state") != state):
        return False
    return not result["runs"] or all(name in result["cells"] for name in columns)


def _note(known: dict[str, Result], at: Architecture, result: Result, state: str) -> None:
    before = known.get(at.key, {})
    if before.get("state") == state and result["runs"]:
        result["cells"] = {**before["cells"], **result["cells"]}
    known[at.key] = {**result, "model": at.model, "state": state}
    CACHE.parent.mkdir(exist_ok=True)
    CACHE.write_text(json.dumps(known, indent=1, ensure_ascii=False))


def _line(architecture: Architecture, result: Result) -> str:
    if not result["runs"]:
        return f"[dim]{architecture.key}  left out: {_plain(result['reason'])}[/]"
    cells: dict[str, Any] = result["cells"]
    bad = [
        f"{name} {cell['code']} {_plain(cell['reason'])}"
        for name, cell in cells.items()
        if cell["verdict"] == "failed"
    ]
    good = sum(cell["verdict"] == "good" for cell in cells.values())
    return "\n    ".join([f"{architecture.key}  {good} of {len(cells)}", *bad])


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    typer.run(main)
