"""A module's forward with the cores of its attentions changed, whichever functions they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.roles.operators import ATTENTIONS, WHOLE_ATTENTIONS
from surgery.anatomy.roles.trail import FunctionCall
from surgery.graft.attention import interfaces
from surgery.graft.attention.calls import called
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.running import RunningCores
from surgery.graft.attention.steps import FIRST, KINDS, tensors
from surgery.graft.attention.whole import opened
from surgery.graft.hooks import around, in_hook


def rerouted(changes: Sequence[tuple[AttentionCore, CoreFunctions]]) -> AbstractContextManager[Any]:
    """Inside, the cores that run in one call of a module have their ``changes``.

    To be entered for one call of the module at the cores' ``path``: they are told apart by the
    order in which they come. Cores of modules inside may be rerouted by these themselves. What hooks
    run inside is left as it is.

    Raises:
        SurgeryError: S430 if a core that is to be changed never came, or more came than are known.

    """
    return _Rerouting(changes, around(1))


class _Rerouting(TorchFunctionMode):
    """Sees every torch function, and shows those that cores may be made of to what follows them."""

    def __init__(self, changes: Sequence[tuple[AttentionCore, CoreFunctions]], beginning: int):
        super().__init__()
        self.beginning = beginning
        self.cores = RunningCores(changes)
        self.compiled = torch.compiler.is_compiling()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        cores = self.cores
        # Most functions are not of a core: they are the price of all others.
        name = getattr(func, "__name__", "")
        if name not in FIRST and not (cores.trails or cores.windowed):
            return called(func, args, kwargs)
        # What is compiled by itself, in a module that is not, is left as it is.
        if torch.compiler.is_compiling() != self.compiled:
            return called(func, args, kwargs)
        if self.beginning and in_hook(self.beginning):
            return called(func, args, kwargs)
        kind = KINDS.get(name, "")
        if kind in ATTENTIONS or kind in WHOLE_ATTENTIONS:
            return self.function(kind, func, args, kwargs)
        call = FunctionCall(kind, func, args, kwargs, tensors(args, kwargs))
        if cores.windowed:
            return cores.in_windows(call)
        return cores.follow(call)

    def function(self, kind: str, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function that is a core, or has one inside."""
        found = self.cores.next()
        if found is None or kind == "flex_attention":
            return called(func, args, kwargs)
        core, change = found
        if kind in WHOLE_ATTENTIONS:
            with _Rerouting([(replace(core, order=0, among=1), change)], around(0)):
                result = opened(*args, **kwargs)
            self.cores.changed()
            return result
        self.cores.changed()
        if kind == "attention_interface":
            return interfaces.attend(change, *args)
        assert change.attend is not None
        return change.attend(*args, **kwargs)

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)  # pyright: ignore[reportUnknownMemberType]
        if exc_type is None:
            self.cores.check()
