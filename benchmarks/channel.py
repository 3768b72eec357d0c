"""``python -m benchmarks.channel``: what forwards cost whose modules pass values to each other.

The models are random, with sizes of real ones. To compare two states of the code, run it with either
on PYTHONPATH, `--json` into one file after the other, and `--beside` the first.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import surgery

WIDTH, LAYERS, LENGTH = 256, 6, 64
SPECS = {
    "lora": "on q|v apply lora(8)",
    "region adapter": "on mlp parallel adapter(16)",
    "pfeiffer adapter": "on mlp pfeiffer adapter(16)",
    "gated adapter": "on mlp gated parallel adapter(16)",
    "prompt": "on tokens apply prompt(10)",
}


def base() -> nn.Module:
    """An OPT, whose feed-forwards are no modules."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    return OPTForCausalLM(config).eval()


def runs(model: nn.Module, trains: bool) -> Callable[[], Any]:
    """One forward, with its backward if it ``trains``."""
    ids = torch.randint(5, 900, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}

    def run() -> None:
        with torch.set_grad_enabled(trains):
            result = model(**given)[0]
            if trains:
                result.mean().backward()

    return run


def main(
    rounds: Annotated[int, typer.Option(help="How often each is run, in turns.")] = 60,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write milliseconds here.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Milliseconds of another state of the code.")
    ] = None,
) -> None:
    """Print how much time of the processor a forward takes, and relative to the base's."""
    torch.set_num_threads(1)
    cases = {"base": runs(base(), False)}
    for name, spec in SPECS.items():
        model = surgery.apply(base(), spec, seed=0)
        cases |= {name: runs(model, False), f"{name}, step": runs(model, True)}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 3):
        for name, run in cases.items():
            start = time.process_time()
            run()
            if number >= 3:
                times[name].append(1e3 * (time.process_time() - start))
    medians = {name: statistics.median(each) for name, each in times.items()}
    if json_file is not None:
        json_file.write_text(json.dumps(medians, indent=1) + "\n")
    before = json.loads(beside.read_text()) if beside else {}
    table = Table("forward", "ms", "to the base", *(["to the other"] if before else []))
    for name, median in medians.items():
        ratio = median / medians["base"]
        other = before.get(name, median) / before.get("base", medians["base"])
        more = [f"{ratio / other:.3f}"] if before else []
        table.add_row(name, f"{median:.2f}", f"{ratio:.3f}", *more)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
