"""Copies of adapted traced graphs: made whole."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from surgery.graft.first import STANDS_IN
from surgery.graft.owner import Owner
from surgery.graft.state import ATTRIBUTE

ORIGINAL = "_surgery_graph"
"""The attribute that keeps the graph from before."""
HOOKS = "_deepcopy_hooks"
"""Where `fx.GraphModule` has what is called with a copy that was made of it."""


class Completing:
    """Gives copies of an adapted graph what `fx.GraphModule` leaves out: all but what a graph names."""

    def __init__(self, model: nn.Module | None, found: dict[str, Any] | None = None):
        self.owner = Owner(model)
        self.found = found or {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Completing:
        model = self.owner.module
        if model is None:
            return Completing(None)
        names = ("_modules", "_parameters", "_buffers", ORIGINAL, ATTRIBUTE, STANDS_IN)
        found = {n: model.__dict__[n] for n in names if n in model.__dict__}
        return Completing(memo.get(id(model)), copy.deepcopy(found, memo))

    def __call__(self, copied: nn.Module) -> None:
        own = next(h for h in copied.__dict__[HOOKS] if isinstance(h, Completing))
        copied.__dict__.update(own.found)
        own.found = {}
