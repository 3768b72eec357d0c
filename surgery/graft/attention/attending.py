"""Running a forward while what its attentions run is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.reroute import rerouted


def attending(
    changes: list[tuple[AttentionCore, CoreFunctions]],
    forward: Callable[..., Any],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run ``forward`` with ``changes``."""
    with rerouted(changes):
        return forward(module, *args, **kwargs)
