"""The little of a model that a report says beyond its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgery.graft.hosts import detached
from surgery.graft.state import surgery_of
from surgery.planning.layers import read_layer
from surgery.reports.formula import Standing


@dataclass(frozen=True)
class ModelContext:
    """``flags`` say which base parameters train now, ``aliases`` the other names of tied ones.

    ``flops`` are those of the base for one token: twice the weights of its matrix products;
    None where a layer runs at other positions than tokens, or holds more than one matrix.
    """

    model: str
    flags: Mapping[str, bool]
    aliases: Mapping[str, tuple[str, ...]]
    flops: int | None
    standing: Standing = field(default_factory=dict[str, Any])


def context_of(model: nn.Module) -> ModelContext:
    """Read ``model`` as its base is, without what was applied to it."""
    surgery = surgery_of(model)
    with detached(model):
        flags = {n: p.requires_grad for n, p in model.named_parameters()}
        return ModelContext(
            type(model).__name__,
            flags,
            _aliases(model),
            _flops(model),
            surgery.standing() if surgery else {},
        )


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


def _flops(model: nn.Module) -> int | None:
    total = 0
    for module in model.modules():
        layer = read_layer(module)
        if layer is not None:
            flops = layer.kind.flops(layer)
            if flops is None:
                return None
            total += flops
        elif isinstance(module, nn.MultiheadAttention):
            own = [p for p in module._parameters.values() if p is not None and p.dim() == 2]
            total += sum(2 * p.numel() for p in own)
        elif any(p is not None and p.dim() > 2 for p in module._parameters.values()):
            return None
    return total or None
