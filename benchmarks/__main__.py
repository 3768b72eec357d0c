"""The menu: ``python -m benchmarks [NAME…] [--quick] [--json]``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness import NothingMeasuredError, Settings, Table

NAMES = {
    "lora_step": "what LoRA adds to a training step and to forwards",
    "dora_forward": "DoRA against its base, forward and training",
    "virtual_tokens": "what prompts, prefixes and UniPELT add",
    "saved_bytes": "memory kept for backward",
    "apply_sites": "applying to thousands of sites, twice",
    "imports": "how long imports and the command line take",
    "experts": "LoRA on the weights of all experts",
    "merging": "merging 896 layers, what unmerging leaves, and peak memory",
    "parsing": "reading a thousand lines",
    "roles": "finding the roles of a model's modules",
}


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of: {', '.join(NAMES)}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, smaller cases.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure speed and memory beside PEFT, on one thread and in process time."""
    chosen = names or list(NAMES)
    unknown = [n for n in chosen if n not in NAMES]
    if unknown:
        raise typer.BadParameter(f"no benchmark `{unknown[0]}`; there are {', '.join(NAMES)}")
    _prepare()
    console = Console()
    console = Console(width=max(console.width, 110))
    found: dict[str, Any] = {}
    for name in chosen:
        try:
            tables: list[Table] = import_module(f"benchmarks.{name}").run(Settings(quick))
        except NothingMeasuredError as reason:
            found[name] = {"nothing_measured": str(reason)}
            if not as_json:
                console.print(f"{name}: nothing could be measured: {reason}")
            continue
        found[name] = [table.as_dict() for table in tables]
        if not as_json:
            console.rule(f"{name}: {NAMES[name]}", align="left")
            for table in tables:
                table.show(console)
            sys.stdout.flush()
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))


def _prepare() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


if __name__ == "__main__":
    typer.run(main)
