"""What 30 virtual tokens add to a Llama: as a prompt and as a prefix, beside PEFT; and UniPELT."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from benchmarks.harness import NothingMeasuredError, Settings, Table, interleaved, overhead_ratio
from benchmarks.peers import llama, peft

N = 30
SHAPES = ((1, 32), (4, 128))


def run(settings: Settings) -> list[Table]:
    base = llama(causal=True)
    prompt = ("prompt", f"on tokens apply prompt({N})", peft().PromptTuningConfig)
    prefix = (
        "prefix",
        f"on attention apply prefix({N})  on tokens apply shifted({N})",
        peft().PrefixTuningConfig,
    )
    table = Table(
        f"{N} virtual tokens on a Llama (512 wide, 8 layers, float32)",
        ("base ms", "ours ms", "PEFT ms", "ours / base"),
        "added, ours / PEFT",
    )
    for name, spec, config in (prompt, prefix):
        ours = surgery.apply(copy.deepcopy(base), spec, seed=0)
        theirs = peft().get_peft_model(
            copy.deepcopy(base), config(task_type="CAUSAL_LM", num_virtual_tokens=N)
        )
        _same_values(ours, theirs)
        _measure(table, name, {"base": base, "ours": ours, "PEFT": theirs.eval()}, settings)
    return [table, _unipelt(base, settings)]


def _unipelt(base: nn.Module, settings: Settings) -> Table:
    table = Table("UniPELT on the same Llama", ("base ms", "ours ms"), "ours / base")
    models = {"base": base, "ours": surgery.apply(copy.deepcopy(base), "unipelt", seed=0)}
    for label, call, ids in _cases():
        times = _times(models, call, ids, settings)
        first, mine = times.values()
        table.add(
            label, *(1e3 * t.median for t in times.values()), judged=mine.median / first.median
        )
    return table


def _measure(table: Table, name: str, models: dict[str, Any], settings: Settings) -> None:
    for label, call, ids in _cases():
        times = _times(models, call, ids, settings)
        first, mine, peer = times.values()
        table.add(
            f"{name}, {label}",
            *(1e3 * t.median for t in times.values()),
            mine.median / first.median,
            judged=overhead_ratio(mine, peer, first),
        )


def _cases() -> list[tuple[str, Any, Tensor]]:
    ids = {shape: torch.randint(3, 500, shape) for shape in SHAPES}
    cases: list[tuple[str, Any, Tensor]] = [
        (f"forward {a} × {b}", _forward, ids[a, b]) for a, b in SHAPES
    ]
    return [*cases, ("step 4 × 128", _step, ids[SHAPES[-1]])]


def _times(models: dict[str, Any], call: Any, ids: Tensor, settings: Settings) -> Any:
    calls = {n: partial(call, m, ids) for n, m in models.items()}
    return interleaved(calls, settings.rounds(20), sample=0.03)


@torch.no_grad()
def _forward(model: Any, ids: Tensor) -> None:
    model(input_ids=ids, attention_mask=torch.ones_like(ids))


def _step(model: Any, ids: Tensor) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    mask = torch.ones_like(ids)
    if any(p.requires_grad for p in model.parameters()):
        model(input_ids=ids, attention_mask=mask).logits.square().mean().backward()
        return
    # Of the base nothing trains: gradients run down to the embedded tokens.
    states = model.get_input_embeddings()(ids).requires_grad_()
    model(inputs_embeds=states, attention_mask=mask).logits.square().mean().backward()


@torch.no_grad()
def _same_values(ours: nn.Module, theirs: Any) -> None:
    """PEFT's virtual tokens in ours, and a look whether both then compute the same."""
    table = theirs.prompt_encoder["default"].embedding.weight
    added = list(surgery.trainable(ours).values())
    if len(added) == 1:
        added[0].copy_(table)
    else:
        heads, _, features = added[0].shape
        parts = table.view(N, len(added), heads, features)
        for place, parameter in enumerate(added):
            parameter.copy_(parts[:, place].transpose(0, 1))
    ids = torch.randint(3, 500, (2, 8))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    one, other = ours(**given).logits, theirs.eval()(**given).logits[:, -8:]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-3):
        raise NothingMeasuredError("the two compute different things")
