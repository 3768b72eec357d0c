"""Running a module's forward with the cores of its attentions changed by generated functions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.reroute import rerouted
from surgery.graft.hooks import are_inside


@dataclass(frozen=True)
class CoreChange:
    """A change to a core as data: ``functions`` maps slots of a `CoreFunctions` to names of functions.

    ``own`` is False if new keys and values are all that it brings. ``late`` names the function
    for what the others need, where that is not known yet when the module is entered.
    """

    core: AttentionCore
    functions: tuple[tuple[str, str], ...]
    revealed: int
    own: bool
    late: str | None = None


def call_attending(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    captured: tuple[tuple[Tensor, ...], ...],
) -> Any:
    """Run the forward from before; ``captured`` is what the functions of each core need."""
    cls: Any = type(module)
    bound = [
        (change.core.each, _bound(change, cls.surgery_functions, module, values))
        for change, values in zip(cls.surgery_cores, captured, strict=True)
    ]
    changes = [(core, change) for cores, change in bound for core in cores]
    run = attending
    # Where the compiler gave up on this call it would go on inside, and does not guard well against
    # what modes hold: it would take the parameters of one layer for those of the next.
    # What hooks run inside is told from the forward by what is on Python's stack, where it has one.
    gave_up = not torch.compiler.is_compiling() and "torch._dynamo.eval_frame" in sys.modules
    if gave_up or (torch.compiler.is_dynamo_compiling() and are_inside(module)):
        from surgery.graft import uncompiled

        run = uncompiled.attending
    return run(changes, cls.surgery_attending, module, args, kwargs)


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


def _bound(
    change: CoreChange,
    functions: dict[str, Callable[..., Any]],
    module: nn.Module,
    captured: tuple[Tensor, ...],
) -> CoreFunctions:
    known = [captured] if change.late is None else []

    def bind(name: str) -> Callable[..., Tensor]:
        def function(*args: Any, **kwargs: Any) -> Tensor:
            if not known and change.late is not None:
                known.append(functions[change.late](module))
            return functions[name](module, *known[0], *args, **kwargs)

        return function

    slots = {slot: bind(name) for slot, name in change.functions}
    return CoreFunctions(revealed=change.revealed, own=change.own, **slots)
