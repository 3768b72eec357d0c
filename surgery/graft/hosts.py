"""The kinds of model that grafts go on, behind one interface."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from torch import fx, nn

from surgery.graft.container import take_grafts
from surgery.graft.contexts import alone
from surgery.graft.state import Surgery
from surgery.graft.structure import Structure, restored


class ModelHost(Protocol):
    """Puts the programs of a model's sites in force, and takes them out."""

    def install(self, model: nn.Module, surgery: Surgery) -> None: ...
    def uninstall(self, model: nn.Module) -> None: ...


def host_of(model: nn.Module) -> ModelHost:
    """The host for ``model``: its graph if it is traced, else its modules."""
    if isinstance(model, fx.GraphModule):
        from surgery.graft import graph_host

        return graph_host
    from surgery.graft import eager

    return eager


@contextmanager
def detached(model: nn.Module, structure: Structure | None = None) -> Generator[None]:
    """The base model inside: its own classes or graph, without the added parameters.

    ``structure``, if given, is what the model is made of when this is entered.
    """
    with alone(model), restored(model, structure):
        host_of(model).uninstall(model)
        take_grafts(model)
        yield
