"""Modules of the model that a method runs, as the norm behind a residual sum."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class Held:
    """Holds a module without owning it, so that no parameter gets a second name."""

    __slots__ = ("module",)

    def __init__(self, module: nn.Module):
        self.module = module


def call_held(held: Held, value: Tensor) -> Tensor:
    """What a held module makes of hidden states, without what it gives beside them."""
    result = held.module(value)
    return cast("tuple[Tensor, ...]", result)[0] if isinstance(result, tuple) else result
