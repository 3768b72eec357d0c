"""Merging hundreds of layers: seconds, the bits that unmerging leaves changed, and peak memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from benchmarks.harness import Settings, Table
from benchmarks.merging_memory import measured
from benchmarks.peers import configuration, ours, peft

WIDTH = 512
_ONES = torch.tensor([n.bit_count() for n in range(256)], dtype=torch.uint8)


def layers(count: int) -> nn.Module:
    """Square linear layers in bfloat16."""
    every = (nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16) for _ in range(count))
    holder = nn.ModuleList(nn.ModuleDict({"linear": layer}) for layer in every)
    return nn.ModuleDict({"layers": holder}).requires_grad_(False)


def weights(model: nn.Module) -> list[Tensor]:
    """The base's weights, wherever the adapted model keeps them."""
    names = ("linear.weight", "linear.base_layer.weight")
    return [p.detach() for n, p in model.named_parameters() if n.endswith(names)]


def changed_bits(before: list[Tensor], after: list[Tensor]) -> float:
    """The share of bits that differ."""
    count = 0
    for one, other in zip(before, after, strict=True):
        differing = (one.view(torch.int16) ^ other.view(torch.int16)).view(torch.uint8)
        count += int(_ONES[differing.int()].sum())
    return count / sum(8 * w.nbytes for w in before)


def furthest(base: list[Tensor], merged: list[Tensor], model: nn.Module) -> float:
    """The largest error of the first eight merged weights, in units of their exact change."""
    worst = 0.0
    holders: Any = model.layers
    for holder, old, new in zip(list(holders)[:8], base, merged, strict=False):
        lora = holder.linear.lora
        exact = old.double() + lora.B.detach().double() @ lora.A.detach().double()
        error = (new.double() - exact).norm() / (exact - old.double()).norm()
        worst = max(worst, error.item())
    return worst


def run(settings: Settings) -> list[Table]:
    count = 64 if settings.quick else 896
    model = ours(layers(count))
    base = [w.clone() for w in weights(model)]
    merging, leaving, rounds = list[float](), list[float](), 3
    wrapped = _peer(model, count)
    peer_merging, peer_leaving = list[float](), list[float]()
    mine: list[Tensor] = []
    other: list[Tensor] = []
    after = peer_after = 0.0
    for _ in range(rounds):
        gc.collect()
        context = surgery.merged(model)
        merging.append(_seconds(context.__enter__))
        mine = [w.clone() for w in weights(model)[:8]]
        leaving.append(_seconds(lambda context=context: context.__exit__(None, None, None)))
        after = changed_bits(base, weights(model))
        for restored, old in zip(weights(wrapped), base, strict=True):
            restored.copy_(old)
        peer_merging.append(_seconds(wrapped.merge_adapter))
        other = [w.clone() for w in weights(wrapped)[:8]]
        peer_leaving.append(_seconds(wrapped.unmerge_adapter))
        peer_after = changed_bits(base, weights(wrapped))
    figures = [
        ("merge, s", median(peer_merging), median(merging)),
        ("unmerge, s", median(peer_leaving), median(leaving)),
        ("error / change", furthest(base, other, model), furthest(base, mine, model)),
        ("bits changed after unmerge, %", 100 * peer_after, 100 * after),
    ]
    once = _seconds(lambda: surgery.merge(model))
    title = f"Merging LoRA, r = 8, into {count} linear layers {WIDTH} × {WIDTH}, bfloat16"
    table = Table(title, ("PEFT",), "ours")
    for label, peer, own in figures:
        table.add(label, peer, judged=own, aim=0 if label.startswith("bits") else None)
    table.add("merge for good, s", None, judged=once)
    table.notes.append(
        "Process time. Ours in float32, rounded once; the new weights beside the old."
    )
    return [table, in_place(48 if settings.quick else 192)]


def in_place(count: int) -> Table:
    """What a merge for good takes of memory and time, in processes of their own."""
    sides = {side: measured(side, count) for side in ("peft", "ours")}
    title = (
        f"Merging for good, r = 8, {count} linear layers {WIDTH} × {WIDTH}, float32 ({count} MiB)"
    )
    table = Table(title, ("PEFT",), "ours")
    for label, key, aim in (
        ("peak, MiB above the model", "peak", 34),
        ("seconds", "seconds", None),
    ):
        table.add(label, sides["peft"][key], judged=sides["ours"][key], aim=aim)
    table.notes.append(
        "Ours writes what it overwrites to a temporary file first, from which a merge that fails is "
        "undone; PEFT's cannot be undone."
    )
    return table


def _peer(model: nn.Module, count: int) -> Any:
    """The same layers adapted by PEFT, with the same values."""
    plain = layers(count)
    wrapped = peft().get_peft_model(plain, configuration(plain))
    mine: Any = model.layers
    theirs: Any = wrapped.base_model.model.layers
    with torch.no_grad():
        for one, other in zip(mine, theirs, strict=True):
            other.linear.base_layer.weight.copy_(one.linear.weight)
            other.linear.lora_A["default"].weight.copy_(one.linear.lora.A)
            other.linear.lora_B["default"].weight.copy_(one.linear.lora.B)
    return wrapped


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
