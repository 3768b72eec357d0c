"""The kinds of model that grafts go on, behind one interface."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import fx, nn

from surgery.graft.state import Surgery
from surgery.graft.structure import Structure


class ModelHost(Protocol):
    """Puts the programs of a model's sites in force, and takes them out."""

    def install(self, model: nn.Module, surgery: Surgery) -> None: ...
    def uninstall(self, model: nn.Module) -> None: ...
    def detached(
        self, model: nn.Module, structure: Structure | None = None
    ) -> AbstractContextManager[None]: ...


def host_of(model: nn.Module) -> ModelHost:
    """The host for ``model``: its graph if it is traced, else its modules."""
    if isinstance(model, fx.GraphModule):
        from surgery.graft import graph_host

        return graph_host
    from surgery.graft import eager

    return eager
