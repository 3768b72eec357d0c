"""What LoRA on the weights of all experts adds to a Mixtral, beside PEFT's `target_parameters`."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from benchmarks.harness import NothingMeasuredError, Settings, Table, interleaved, overhead_ratio
from benchmarks.lora_step import forward, step
from benchmarks.peers import peft, same_answers

AIM = 0.6
RANK = 8
WEIGHTS = ("gate_up_proj", "down_proj")


def mixtral(implementation: str, hidden: int = 256) -> nn.Module:
    """The body of a Mixtral with 8 experts, two of them for each token."""
    try:
        from transformers import MixtralConfig, MixtralModel
    except ImportError as problem:
        raise NothingMeasuredError(f"there is no Mixtral to adapt ({problem})") from None
    config = MixtralConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=8,
        vocab_size=512,
        use_cache=False,
    )
    model = MixtralModel(config).eval().requires_grad_(False)
    model.set_experts_implementation(implementation)
    return model


def ours(base: nn.Module) -> nn.Module:
    """A copy of ``base`` with rank 8 on each expert; no tensor of it is zero."""
    model = copy.deepcopy(base)
    surgery.apply(model, f"on experts apply lora(r = {RANK})", seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(0, 0.02)
    return model


def theirs(base: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of ``base`` adapted by PEFT, with the values of ``like``, which is ours."""
    names = [f"experts.{weight}" for weight in WEIGHTS]
    config = peft().LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[], target_parameters=names)
    inner: nn.Module = peft().get_peft_model(copy.deepcopy(base), config).base_model.model
    with torch.no_grad():
        for path, module in inner.named_modules():
            if not hasattr(module, "parameter_name"):
                continue
            owner = path.partition(".base_layer")[0]
            own = like.get_submodule(f"{owner}.lora.{module.parameter_name}")
            wrapped: Any = module
            wrapped.lora_A["default"].weight.copy_(own.A.flatten(0, 1))
            wrapped.lora_B["default"].weight.copy_(own.B.permute(1, 2, 0).flatten(1))
    return inner


def run(settings: Settings) -> list[Table]:
    return [_table(settings, implementation) for implementation in ("eager", "grouped_mm")]


def _table(settings: Settings, implementation: str) -> Table:
    base = mixtral(implementation)
    adapted = ours(base)
    models = {"base": base, "ours": adapted, "PEFT": theirs(base, adapted)}
    table = Table(
        f"LoRA, r = {RANK}, on 8 experts of a Mixtral (256 wide, 2 layers, float32), "
        f"`{implementation}`",
        ("base ms", "ours ms", "PEFT ms", "ours + ms", "PEFT + ms"),
        "added, ours / PEFT",
    )
    cases: dict[str, tuple[Any, Tensor]] = {
        "forward 1 × 32": (forward, torch.randn(1, 32, 256)),
        "forward 4 × 128": (forward, torch.randn(4, 128, 256)),
        "step 4 × 128": (step, torch.randn(4, 128, 256, requires_grad=True)),
    }
    for label, (call, states) in cases.items():
        same_answers(models["ours"], models["PEFT"], inputs_embeds=states)
        calls: dict[str, Any] = {n: partial(call, m, states) for n, m in models.items()}
        times = interleaved(calls, settings.rounds(24), sample=0.03)
        first, mine, peer = times.values()
        table.add(
            label,
            *(1e3 * t.median for t in times.values()),
            1e3 * mine.over(first),
            1e3 * peer.over(first),
            judged=overhead_ratio(mine, peer, first),
            aim=AIM,
        )
    return table
