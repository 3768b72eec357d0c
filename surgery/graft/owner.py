"""What belongs to one module, and knows which without keeping it alive."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn


class Owner:
    """The module that something belongs to; what a copy or a pickle has belongs to the copy.

    A reference back would make a circle, and memory would be freed late.
    """

    __slots__ = ("_module",)

    def __init__(self, module: nn.Module | None):
        self._module = None if module is None else weakref.ref(module)

    @property
    def module(self) -> nn.Module | None:
        """The module, if there still is one."""
        return None if self._module is None else self._module()

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return Owner(memo.get(id(self.module)))

    def __reduce__(self) -> tuple[type[Owner], tuple[nn.Module | None]]:
        return Owner, (self.module,)
