"""What generated forwards call of the channel, whether they are compiled or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgery.graft.channel import Slot, begin, hold, is_of_hook, read_now
from surgery.graft.hooks import around


def within(
    slots: Sequence[Slot],
    run: Callable[..., Any],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a forward of ``module`` with ``slots`` open."""
    if torch.compiler.is_compiling():
        # From here on what the compiler does not follow runs as it is.
        from surgery.graft import uncompiled  # noqa: F401  # pyright: ignore[reportUnusedImport]
    beginning = around(0)
    outer = [begin(slot, beginning) for slot in slots]
    try:
        output = run(module, *args, **kwargs)
        if not torch.compiler.is_compiling():
            for slot in slots:
                hold(slot, output)
        return output
    finally:
        for slot, scope in zip(slots, outer, strict=True):
            slot.here.scope = scope


def look(slot: Slot, states: Tensor) -> Any:
    """The value in ``slot`` for the forward that made ``states``; it stays there.

    None outside of any call: nothing is known then.

    Raises:
        SurgeryError: S433 if a module runs again and it is not known in which forward it did
            before; S438 if what gives the value does not run in the running call.

    """
    scope = getattr(slot.here, "scope", None)
    if torch.compiler.is_compiling():
        # What begins outside may be over when what is compiled runs again.
        begun: Any = None if scope is None else scope.where
        records = torch.is_grad_enabled() or (begun is not None and begun[1])
        if records and (scope is None or begun is not None):
            from surgery.graft import uncompiled

            return uncompiled.look(slot, states)
        return None if scope is None else scope.value
    return read_now(slot, states)


def fetch(slot: Slot, states: Tensor) -> Any:
    """As :func:`look`, for the first that asks; others, and what a hook runs, find None."""
    scope = getattr(slot.here, "scope", None)
    if scope is not None and scope.value is not None and is_of_hook(scope):
        return None
    value = look(slot, states)
    if value is not None and scope is not None:
        scope.value = None
    return value
