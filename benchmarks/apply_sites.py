"""Seconds to apply a first and a second method to thousands of linear layers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from torch import nn

import surgery
from benchmarks.harness import Settings, Table
from benchmarks.peers import configuration, peft

AIM = 1.5
LEAVES = ("q", "k", "v", "o", "up", "down")


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
        "Wall seconds to apply LoRA, r = 8, to many linear layers",
        ("PEFT", "ours, ms a site", "PEFT, ms a site"),
        "ours",
    )
    ours(many_linears(60))
    for count in counts:
        base = many_linears(count)
        mine, peer = ours(copy.deepcopy(base)), theirs(copy.deepcopy(base))
        aim = AIM if count == 6144 else None
        for label, one, other in zip(("first", "second"), mine, peer, strict=True):
            each = (1e3 * one / count, 1e3 * other / count)
            table.add(f"{count:,} sites, {label}", other, *each, judged=one, aim=aim)
    return [table]


def ours(model: nn.Module) -> tuple[float, float]:
    first = _seconds(lambda: surgery.apply(model, "on Linear apply lora(r = 8)", seed=0))
    second = "on Linear apply lora(r = 8) as other"
    return first, _seconds(lambda: surgery.apply(model, second, seed=1))


def theirs(model: nn.Module) -> tuple[float, float]:
    config = configuration(model)
    wrapped: list[Any] = []
    first = _seconds(lambda: wrapped.append(peft().get_peft_model(model, config)))
    return first, _seconds(lambda: wrapped[0].add_adapter("other", copy.deepcopy(config)))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
