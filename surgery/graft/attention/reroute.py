"""Attention cores that run as a program has them, whichever functions they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from surgery.anatomy.site import Core
from surgery.graft.attention.calls import called
from surgery.graft.attention.change import Change
from surgery.graft.attention.fused import attend
from surgery.language.diagnostics import SurgeryError, error


def rerouted(changes: Sequence[tuple[Core, Change]]) -> AbstractContextManager[Any]:
    """Inside, the cores that run in one call of a module have their ``changes``.

    To be entered for one call of the module at the cores' ``path``: they are told apart by the
    order in which they come. Cores of modules inside may be rerouted by these themselves.

    Raises:
        SurgeryError: S430 if a core that is to be changed never came.

    """
    return _Rerouting(changes)


class _Rerouting(TorchFunctionMode):
    """Sees every torch function; which core is next is counted."""

    def __init__(self, changes: Sequence[tuple[Core, Change]]):
        super().__init__()
        self.changes = changes
        self.came = 0
        self.changed = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            found = self.next()
            if found is not None:
                core, change = found
                return attend(func, args, kwargs, change, core.query_heads)
        return called(func, args, kwargs)

    def next(self) -> tuple[Core, Change] | None:
        """The core that comes now with its change, if it has one."""
        order = self.came
        self.came += 1
        for core, change in self.changes:
            if core.order == order:
                self.changed += 1
                return core, change
        return None

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)  # pyright: ignore[reportUnknownMemberType]
        if exc_type is None and self.changed < len(self.changes):
            raise self.missing()

    def missing(self) -> SurgeryError:
        core = next(core for core, _ in self.changes if core.order >= self.came)
        return error(
            "S430",
            f"the attention of `{core.path}` did not run as when the model was read: "
            "its core cannot be changed",
            help='load the model with attn_implementation="sdpa", or keep the implementation '
            "it had when it was adapted",
        )
