"""Running a module's forward with the cores of its attentions changed by generated functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from surgery.anatomy.site import Core
from surgery.graft.attention import Change, rerouted


@dataclass(frozen=True)
class CoreChange:
    """A change to a core as data: ``functions`` maps slots of a `Change` to names of functions."""

    core: Core
    functions: tuple[tuple[str, str], ...]
    revealed: int


def call_attending(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    captured: tuple[tuple[Tensor, ...], ...],
) -> Any:
    """Run the forward from before; ``captured`` is what the functions of each core need."""
    cls: Any = type(module)
    changes = [
        (change.core, _bound(change, cls.surgery_functions, module, values))
        for change, values in zip(cls.surgery_cores, captured, strict=True)
    ]
    with rerouted(changes):
        return cls.surgery_base.forward(module, *args, **kwargs)


def _bound(
    change: CoreChange,
    functions: dict[str, Callable[..., Tensor]],
    module: nn.Module,
    captured: tuple[Tensor, ...],
) -> Change:
    def bind(name: str) -> Callable[[Tensor], Tensor]:
        function = functions[name]
        return lambda value: function(module, value, *captured)

    return Change(revealed=change.revealed, **{s: bind(n) for s, n in change.functions})
