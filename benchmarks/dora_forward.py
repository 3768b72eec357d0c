"""DoRA on every linear layer of a Llama against the base alone."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness import Settings, Table, interleaved
from benchmarks.lora_step import cases
from benchmarks.peers import llama, ours, same_answers, theirs

AIMS = {"forward 1 × 1": 2.0, "forward 1 × 32": 1.5, "forward 4 × 128": 1.3}


def run(settings: Settings) -> list[Table]:
    base = llama()
    adapted = ours(base, "dora")
    models = {"base": base, "ours": adapted, "PEFT": theirs(base, adapted, "dora")}
    table = Table(
        "DoRA, r = 8, on all 56 linear layers of a Llama (512 wide, 8 layers, float32)",
        ("base ms", "ours ms", "PEFT ms", "PEFT / base"),
        "ours / base",
    )
    for label, (call, states) in cases(512).items():
        same_answers(models["ours"], models["PEFT"], inputs_embeds=states)
        calls: dict[str, Any] = {n: partial(call, m, states) for n, m in models.items()}
        times = interleaved(calls, settings.rounds(16 if states.shape[1] > 32 else 40), sample=0.03)
        first, mine, peer = (t.median for t in times.values())
        figures = (1e3 * first, 1e3 * mine, 1e3 * peer, peer / first)
        table.add(label, *figures, judged=mine / first, aim=AIMS.get(label))
    table.notes.append("A step trains A, B and M, so that the norm is computed anew in each.")
    return [table]
