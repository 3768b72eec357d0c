"""Weights of experts with low-rank changes: products with them never make a changed weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.graft.weights.expert_weights import ExpertWeights

Factors = tuple[Tensor, Tensor, float]
"""L […, rows, r], R […, r, columns] and s of a change s·L R."""


class LowRankWeights(ExpertWeights):
    """W + s·L R + …: in a product x W it gives x W + s·(x L) R."""

    def __init__(
        self, weight: Tensor, factors: Sequence[Factors], held: torch.Size | None = None
    ) -> None:
        self.weight = weight
        self.factors = tuple(factors)
        self.held = held

    def changed(self) -> Tensor:
        total = self.weight
        for left, right, scale in self.factors:
            total = torch.add(total, left @ right, alpha=scale)
        return total if self.held is None else total.reshape(self.held)

    def select(self, index: Any) -> LowRankWeights:
        factors = [(left[index], right[index], scale) for left, right, scale in self.factors]
        return LowRankWeights(self.weight[index], factors)

    def turned(self) -> LowRankWeights:
        factors = [(right.mT, left.mT, scale) for left, right, scale in self.factors]
        return LowRankWeights(self.weight.mT, factors)

    def unfolded(self) -> LowRankWeights:
        return LowRankWeights(self.weight, self.factors)

    def to(self, *args: Any, **kwargs: Any) -> LowRankWeights:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(*args, **kwargs)

        factors = [(moved(left), moved(right), scale) for left, right, scale in self.factors]
        return LowRankWeights(moved(self.weight), factors, self.held)

    def product(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        if len(args) < 2 or not isinstance(args[0 if args[1] is self else 1], Tensor):
            return None
        first, second, *rest = args
        if name in _PLAIN and not rest and not kwargs:
            if second is self:
                return self._sum(
                    func(first, self.weight), lambda left, right: func(func(first, left), right)
                )
            return self._sum(
                func(self.weight, second), lambda left, right: func(left, func(right, second))
            )
        if second is not self:
            return None
        if name == "linear" and self.weight.dim() == 2:
            return self._sum(
                func(first, self.weight, *rest, **kwargs),
                lambda left, right: functional.linear(functional.linear(first, right), left),
            )
        if name in _GROUPED:

            def grouped(left: Tensor, right: Tensor) -> Tensor:
                left, right = _aligned(left, right)
                return func(func(first, left, *rest, **kwargs), right, *rest, **kwargs)

            return self._sum(func(first, self.weight, *rest, **kwargs), grouped)
        return None

    def _sum(self, result: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        for left, right, scale in self.factors:
            result = torch.add(result, change(left, right), alpha=scale)
        return result


_PLAIN = frozenset(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm"))
_GROUPED = frozenset(("grouped_mm", "_grouped_mm", "grouped_mm_fallback"))


def _aligned(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors with a rank that fills 16 bytes, as grouped kernels want rows to."""
    missing = -left.shape[-1] % max(1, 16 // left.element_size())
    if missing:
        left = functional.pad(left, (0, missing))
        right = functional.pad(right, (0, 0, 0, missing))
    return left.contiguous(), right.contiguous()
