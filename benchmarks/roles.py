"""Seconds to record a forward and to find roles in it, up to 70 billion parameters without values."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import NothingMeasuredError, Settings, Table, interleaved
from surgery.anatomy.paths import Paths
from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.run import record

ROOT = Path(__file__).resolve().parents[1]
SIZES: dict[str, dict[str, int]] = {
    "8 layers, 64 wide": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 8},
    "32 layers, 64 wide": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 32},
    "256 layers, 64 wide": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 256},
    "80 layers, 70 B, meta": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "vocab_size": 128256,
    },
}


def llama(**sizes: int) -> nn.Module:
    """A Llama with its head; on the meta device where it is too large to have values."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as problem:
        raise NothingMeasuredError(f"there are no Llamas to read ({problem})") from None
    rest = {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512}
    config = LlamaConfig(**{**rest, **sizes})
    with torch.device("meta" if config.hidden_size > 1024 else "cpu"):
        return LlamaForCausalLM(config).eval()


def find(model: nn.Module) -> dict[str, Any]:
    """The places of each role, by a forward that is recorded now."""
    paths = Paths(model)
    return Anatomy(record(model, None, paths), paths).places


def run(settings: Settings) -> list[Table]:
    columns = ("parameters, B", "roles", "places", "memory + MiB", "recording", "again")
    table = Table("Reading the anatomy of a Llama: one forward, and the roles", columns, "seconds")
    taken: dict[str, float] = {}
    for label, sizes in SIZES.items():
        model = llama(**sizes)
        places = find(model)
        calls = {
            "recording": partial(record, model),
            "read": partial(find, model),
            "again": partial(read, model),
        }
        found = interleaved(calls, settings.rounds(12), sample=0.0)
        taken[label] = found["read"].median
        count = sum(p.numel() for p in model.parameters()) / 1e9
        figures = (str(len(places)), str(sum(map(len, places.values()))), _grown(label))
        more = (found["recording"].median, found["again"].median)
        aim = 0.2 if label.startswith("32") else None
        table.add(label, count, *figures, *more, judged=taken[label], aim=aim)
    few, many = (taken[f"{layers} layers, 64 wide"] for layers in (32, 256))
    table.add("256 layers over 32", *(None,) * len(columns), judged=many / few, aim=8.5)
    table.notes.append("Memory is what the peak of a fresh process rises by at its first reading.")
    table.notes.append("`again` is of a reading that was kept: the model is looked at for changes.")
    return [table]


def _grown(label: str) -> float | None:
    """MiB that reading the model ``label`` adds to a process, measured in one of its own."""
    script = f"from benchmarks.roles import grown; print('MiB', grown({label!r}))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return None if done.returncode else float(done.stdout.rpartition("MiB")[2])


def grown(label: str) -> float:
    """MiB that the peak of this process rises by when it reads the model ``label``."""
    model = llama(**SIZES[label])
    before = _peak()
    find(model)
    return _peak() - before


def _peak() -> float:
    """The most memory this process has held, in MiB; only Linux tells.

    `ru_maxrss` would not do: a child begins with its parent's, and a large parent hides all.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
