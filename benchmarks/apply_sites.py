"""Seconds to apply a first and a second method to thousands of linear layers."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

import surgery
from benchmarks.harness import Settings, Table
from benchmarks.peers import configuration, peft

AIM = 1.5
LEAVES = ("q", "k", "v", "o", "up", "down")


class Taken(NamedTuple):
    """Seconds, by the clock and of this process."""

    wall: float
    process: float


def many_linears(sites: int) -> nn.Module:
    """Blocks of six small linear layers, ``sites`` layers in all."""
    blocks = (
        nn.ModuleDict({leaf: nn.Linear(16, 16) for leaf in LEAVES})
        for _ in range(sites // len(LEAVES))
    )
    return nn.ModuleDict({"blocks": nn.ModuleList(blocks)})


def run(settings: Settings) -> list[Table]:
    counts = (192, 384, 768) if settings.quick else (1536, 3072, 6144)
    table = Table(
        "Wall seconds to apply LoRA, r = 8, to many linear layers, and again by another name",
        ("PEFT", "PEFT CPU", "ours CPU", "ours, ms a site"),
        "ours",
    )
    ours(many_linears(60))
    for count in counts:
        mine, peer = ours(many_linears(count)), theirs(many_linears(count))
        aim = AIM if count == 6144 else None
        for label, one, other in zip(("first", "second"), mine, peer, strict=True):
            figures = (other.wall, other.process, one.process, 1e3 * one.wall / count)
            table.add(f"{count:,} sites, {label}", *figures, judged=one.wall, aim=aim)
    table.notes.append("Wall time has in it whatever else the machine does; CPU time has not.")
    return [table]


def ours(model: nn.Module) -> tuple[Taken, Taken]:
    second = "on Linear apply lora(r = 8) as other"
    return (
        _taken(lambda: surgery.apply(model, "on Linear apply lora(r = 8)", seed=0)),
        _taken(lambda: surgery.apply(model, second, seed=1)),
    )


def theirs(model: nn.Module) -> tuple[Taken, Taken]:
    config = configuration(model)
    wrapped: list[Any] = []
    first = _taken(lambda: wrapped.append(peft().get_peft_model(model, config)))
    return first, _taken(lambda: wrapped[0].add_adapter("other", copy.deepcopy(config)))


def _taken(call: Callable[[], Any]) -> Taken:
    gc.collect()
    wall, process = time.perf_counter(), time.process_time()
    call()
    return Taken(time.perf_counter() - wall, time.process_time() - process)
