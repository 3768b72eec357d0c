"""What LoRA on every linear layer adds to a Llama's training step and forwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Settings, Table, interleaved, overhead_ratio
from benchmarks.peers import llama, one_linear, ours, same_answers, theirs

AIM = 0.6


def step(model: nn.Module, states: Tensor) -> None:
    """Forward and backward, down to the inputs, as in the middle of a deeper model."""
    for parameter in model.parameters():
        parameter.grad = None
    states.grad = None
    model(inputs_embeds=states).last_hidden_state.square().mean().backward()


@torch.no_grad()
def forward(model: nn.Module, states: Tensor) -> None:
    model(inputs_embeds=states)


def cases(hidden: int) -> dict[str, tuple[Callable[[nn.Module, Tensor], None], Tensor]]:
    """The cases of a Llama: what to run, and on what."""
    return {
        "forward 1 × 1": (forward, torch.randn(1, 1, hidden)),
        "forward 1 × 32": (forward, torch.randn(1, 32, hidden)),
        "forward 4 × 128": (forward, torch.randn(4, 128, hidden)),
        "step 4 × 128": (step, torch.randn(4, 128, hidden, requires_grad=True)),
    }


def run(settings: Settings) -> list[Table]:
    return [_llama(settings), _linear(settings)]


def _llama(settings: Settings) -> Table:
    base = llama()
    adapted = ours(base)
    models = {"base": base, "ours": adapted, "PEFT": theirs(base, adapted)}
    table = Table(
        "LoRA, r = 8, on all 56 linear layers of a Llama (512 wide, 8 layers, float32)",
        ("base ms", "ours ms", "PEFT ms", "ours + ms", "PEFT + ms"),
        "added, ours / PEFT",
    )
    for label, (call, states) in cases(512).items():
        same_answers(models["ours"], models["PEFT"], inputs_embeds=states)
        long = states.shape[1] > 32
        calls: dict[str, Any] = {n: partial(call, m, states) for n, m in models.items()}
        times = interleaved(calls, settings.rounds(24 if long else 60), sample=0.03)
        first, mine, peer = times.values()
        table.add(
            label,
            *(1e3 * t.median for t in times.values()),
            1e3 * mine.over(first),
            1e3 * peer.over(first),
            judged=overhead_ratio(mine, peer, first),
            aim=None if label == "forward 4 × 128" else AIM,
        )
    return table


def _linear(settings: Settings) -> Table:
    base = one_linear(64, 64)
    adapted = ours(base)
    peer = theirs(base, adapted)
    table = Table(
        "One linear layer, 64 → 64, LoRA r = 8, forward",
        ("base µs", "ours µs", "PEFT µs"),
        "added, ours / PEFT",
    )
    for shape in ((1, 64), (1, 1, 64)):
        x = torch.randn(shape)
        same_answers(adapted, peer, input=x)
        layers = {n: m.linear for n, m in (("base", base), ("ours", adapted), ("PEFT", peer))}
        with torch.no_grad():
            calls = {n: partial(layer, x) for n, layer in layers.items()}
            times = interleaved(calls, settings.rounds(60), sample=0.01)
        first, mine, other = times.values()
        label = "on " + " × ".join(map(str, shape))
        ratio = overhead_ratio(mine, other, first)
        table.add(label, *(1e6 * t.median for t in times.values()), judged=ratio, aim=AIM)
    table.notes.append("Written by hand with one fused kernel, about 0.4 of what PEFT adds.")
    return table
