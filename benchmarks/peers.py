"""Models adapted by us and by PEFT, with equal weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from benchmarks.harness import NothingMeasuredError


def peft() -> Any:
    """The package, where it is installed."""
    try:
        import peft as package
    except ImportError as problem:
        raise NothingMeasuredError(f"PEFT is not here to compare with ({problem})") from None
    return package


def llama(
    hidden: int = 512,
    intermediate: int = 1376,
    layers: int = 8,
    heads: int = 8,
    causal: bool = False,
) -> nn.Module:
    """The body of a Llama, of which every `Linear` belongs to a layer; or all of it."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
    except ImportError as problem:
        raise NothingMeasuredError(f"there are no Llamas to adapt ({problem})") from None
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=512,
        use_cache=False,
    )
    made = LlamaForCausalLM(config) if causal else LlamaModel(config)
    return made.eval().requires_grad_(False)


def one_linear(
    into: int, out: int, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A model of one linear layer, named `linear`."""
    layer = nn.Linear(into, out, bias=bias, dtype=dtype).requires_grad_(False)
    return nn.Sequential(OrderedDict(linear=layer)).eval()


def ours(base: nn.Module, method: str = "lora", dropout: float = 0.0) -> nn.Module:
    """A copy of ``base`` with rank 8 on each linear layer; no tensor of it is zero."""
    model = copy.deepcopy(base)
    surgery.apply(model, f"on Linear apply {method}(r = 8, dropout = {dropout})", seed=0)
    stir(model, method)
    return model


@torch.no_grad()
def stir(model: nn.Module, child: str = "lora") -> None:
    """Give the up-projections, which begin as zero, values as after some training."""
    for name, parameter in model.named_parameters():
        if name.endswith(f"{child}.B"):
            parameter.normal_(0, 0.02)


def configuration(model: nn.Module, method: str = "lora", dropout: float = 0.0) -> Any:
    """What :func:`ours` applies, in PEFT's words."""
    linears = (n for n, m in model.named_modules() if isinstance(m, nn.Linear))
    return peft().LoraConfig(
        r=8,
        lora_alpha=8,
        lora_dropout=dropout,
        use_dora=method == "dora",
        target_modules=sorted({n.rpartition(".")[2] for n in linears}),
    )


def theirs(
    base: nn.Module, like: nn.Module, method: str = "lora", dropout: float = 0.0, wide: bool = True
) -> nn.Module:
    """A copy of ``base`` adapted by PEFT, with the values of ``like``, which is ours.

    Unless ``wide``, half-precision adapters stay so; PEFT's default makes them float32.
    """
    model = copy.deepcopy(base)
    config = configuration(model, method, dropout)
    wrapped = peft().get_peft_model(model, config, autocast_adapter_dtype=wide)
    source = dict(like.named_parameters())
    names = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "M"}
    with torch.no_grad():
        for name, parameter in wrapped.base_model.model.named_parameters():
            owner, _, kind = name.removesuffix(".default.weight").rpartition(".")
            if kind in names:
                parameter.copy_(source[f"{owner}.{method}.{names[kind]}"])
    inner: nn.Module = wrapped.base_model.model
    return inner.train(like.training)


def same_answers(first: nn.Module, second: nn.Module, **inputs: Tensor) -> None:
    """Stop if two models that are to be compared don't compute the same."""
    with torch.no_grad():
        one, other = (m(**inputs) for m in (first, second))
    if not isinstance(one, Tensor):
        one, other = one.last_hidden_state, other.last_hidden_state
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-3):
        gap = (one - other).abs().max().item()
        raise NothingMeasuredError(f"the two compute different things (up to {gap:.2g})")
