"""Functions that properties call which give the changed weights of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surgery.graft.weights.expert_weights import ExpertWeights
from surgery.graft.weights.low_rank import Factors, LowRankWeights


class MadeWeights(ExpertWeights):
    """Weights of which the changed ones are made when they are read, those of selected experts.

    ``change`` gives the changed matrix of one expert from its weight and its parameters.
    """

    def __init__(
        self,
        change: Callable[..., Tensor],
        values: tuple[Tensor, ...],
        held: torch.Size | None = None,
    ) -> None:
        self.change = change
        self.values = values
        self.weight = values[0]
        self.held = held

    def changed(self) -> Tensor:
        total = torch.vmap(self.change)(*self.values)
        return total if self.held is None else total.reshape(self.held)

    def select(self, index: Any) -> Tensor:
        chosen = tuple(value[index] for value in self.values)
        return self.change(*chosen) if chosen[0].dim() == 2 else torch.vmap(self.change)(*chosen)

    def unfolded(self) -> MadeWeights:
        return MadeWeights(self.change, self.values)


def low_rank_weights(
    weight: Tensor, experts: int, transposed: bool, terms: tuple[Factors, ...]
) -> LowRankWeights:
    """The weights of a module's experts with s·B A added to each, for ``terms`` (B, A, s)."""
    stacked, held = _stacked(weight, experts)
    if transposed:
        terms = tuple((right.mT, left.mT, scale) for left, right, scale in terms)
    return LowRankWeights(stacked, terms, held)


def made_weights(
    module: nn.Module, name: str, experts: int, values: tuple[Tensor, ...]
) -> MadeWeights:
    """The weights of a module's experts as its function ``name`` makes them."""
    stacked, held = _stacked(values[0], experts)
    return MadeWeights(_function(module, name), (stacked, *values[1:]), held)


def for_each(module: nn.Module, name: str, values: tuple[Tensor, ...]) -> Tensor:
    """The module's function ``name`` of the values of each expert."""
    return torch.vmap(_function(module, name))(*values)


def _function(module: nn.Module, name: str) -> Callable[..., Tensor]:
    cls: Any = type(module)
    function = cls.surgery_functions[name]
    return lambda *values: function(module, *values)


def _stacked(weight: Tensor, experts: int) -> tuple[Tensor, torch.Size | None]:
    if weight.dim() == 3:
        return weight, None
    return weight.view(experts, -1, weight.shape[-1]), weight.shape
