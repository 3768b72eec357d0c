"""Seconds to merge hundreds of layers, and the bits that merging and unmerging leaves changed."""

from __future__ import annotations

import copy
import gc
import time

import torch
from torch import Tensor, nn

import surgery
from benchmarks.harness import NothingMeasuredError, Settings, Table
from benchmarks.peers import configuration, ours, peft, theirs

WIDTH = 512


def layers(count: int) -> nn.Module:
    """Square linear layers in bfloat16."""
    every = (nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16) for _ in range(count))
    holder = nn.ModuleList(nn.ModuleDict({"linear": layer}) for layer in every)
    return nn.ModuleDict({"layers": holder}).requires_grad_(False)


def weights(model: nn.Module) -> list[Tensor]:
    """The base weights, wherever the adapted model keeps them."""
    names = ("linear.weight", "linear.base_layer.weight")
    return [p for n, p in model.named_parameters() if n.endswith(names)]


def changed_bits(before: list[Tensor], after: list[Tensor]) -> float:
    """The share of bits that differ."""
    if len(before) != len(after):
        raise NothingMeasuredError("the weights are not where they were")
    count = sum(
        (one.view(torch.int16) ^ other.view(torch.int16)).view(torch.uint8).to(torch.int16)
        .apply_(int.bit_count).sum().item()
        for one, other in zip(before, after, strict=True)
    )
    return count / sum(8 * w.nbytes for w in before)
