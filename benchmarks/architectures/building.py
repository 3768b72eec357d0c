"""An architecture as a tiny model with random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from benchmarks.architectures.catalogue import Architecture, config_class, model_class
from benchmarks.architectures.overrides import OVERRIDES, composed
from benchmarks.architectures.shrink import shrunk

SEED = 0


def config_of(architecture: Architecture) -> Any:
    """The tiny configuration: the class's defaults shrunk, then what is odd about it."""
    made = composed(architecture.name)
    if made is None:
        wanted = model_class(architecture).config_class
        kind = config_class(architecture.name)
        if wanted is not None and not issubclass(kind, wanted):
            kind = wanted  # a language model within a larger one
        fields = shrunk(_fields(kind()))
        _overlay(fields, OVERRIDES.get(architecture.name, {}))
        made = kind.from_dict(fields)
    if architecture.task == "causal" and hasattr(made, "is_decoder"):
        made.is_decoder = True
    if architecture.task == "classification":
        made.num_labels = 3
    if getattr(made, "pad_token_id", None) is None:
        made.pad_token_id = 0
    if made.is_encoder_decoder and getattr(made, "decoder_start_token_id", None) is None:
        made.decoder_start_token_id = 1
    return made


def build(architecture: Architecture, seed: int = SEED) -> nn.Module:
    """The model, every floating parameter random, in eval mode."""
    torch.manual_seed(seed)
    model = model_class(architecture)(config_of(architecture))
    return randomised(model.float(), seed).eval()


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Random values everywhere, since initial ones (zero biases, closed gates) hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.1
            ones = parameter.dim() == 1 and bool((parameter == 1).all())
            parameter.copy_(scale * noise + (1 if ones else 0))
    return model


def _fields(config: Any) -> dict[str, Any]:
    """What a configuration holds, its parts as dictionaries, too."""
    fields = config.to_dict()
    for name in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        fields.pop(name, None)
    return fields


def _overlay(fields: dict[str, Any], odd: dict[str, Any]) -> None:
    """``odd`` into ``fields``; a dotted name goes into a part, and None takes a field away."""
    for name, value in odd.items():
        at = fields
        *parts, last = name.split(".")
        for part in parts:
            at = at[part]
        at[last] = value
