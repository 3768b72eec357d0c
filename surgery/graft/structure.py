"""What a model is made of beside its numbers: remembered, and put back as it was.

Classes, attributes, children, parameters, their flags and which memory they are in. Whatever changes
a model happens between a :class:`Structure` and an exception that restores it, or the difference to
it, which can be exchanged again (see graft/exchange.py).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from surgery.anatomy.modules import all_modules
from surgery.graft.journal import Journal

Table = dict[str, Any]


@dataclass(slots=True)
class Before:
    """One module as it was."""

    module: nn.Module
    cls: type[nn.Module]
    attributes: Table
    children: Table
    parameters: Table


class Structure:
    """All modules and parameters of a model as they are now; no number is copied.

    With ``tables`` alone, parameters are remembered by where they stand, not their flags and memory.
    """

    def __init__(self, model: nn.Module, tables: bool = False):
        self.model = model
        self.modules = [
            Before(m, type(m), dict(m.__dict__), dict(m._modules), dict(m._parameters))
            for m in all_modules(model)
        ]
        self.parameters: dict[int, tuple[nn.Parameter, Tensor, bool]] = {}
        for before in () if tables else self.modules:
            for p in before.parameters.values():
                if p is not None and id(p) not in self.parameters:
                    self.parameters[id(p)] = (p, p.data, p.requires_grad)
        self.journal = Journal()

    def keep(self, parameter: nn.Parameter) -> None:
        """Remember the numbers of ``parameter``, too, before they are written in place."""
        self.journal.keep(parameter)

    def holds_alone(self, parameter: nn.Parameter) -> bool:
        """Whether no tensor but ``parameter`` shows its memory, and that can be written to.

        Others are those tied to it as views, those in a state dict that somebody holds, and what
        autograd has saved of it. Memory that torch did not allocate is somebody else's, too: an
        array's, or a file's.
        """
        _, data, _ = self.parameters.get(id(parameter), (None, None, None))
        if data is None or type(parameter) is not nn.Parameter or parameter.is_inference():
            return False
        if parameter.layout is not torch.strided or parameter.is_meta or 0 in parameter.stride():
            return False
        if not parameter.untyped_storage().resizable():
            return False
        return same_memory(parameter, data) and holders_of(parameter) == _holders_of_two()

    def restore(self) -> None:
        """Put everything back."""
        self.restore_tables()
        for parameter, data, flag in self.parameters.values():
            if not same_memory(parameter, data):
                parameter.data = data
            set_flag(parameter, flag)
        self.journal.restore()

    def restore_tables(self) -> None:
        """Put classes, attributes, children and parameters back where they stood."""
        graphs = [b.module for b in self.modules if graph_changed(b)]
        for before in self.modules:
            module = before.module
            if type(module) is not before.cls:
                set_class(module, before.cls)
            for table, content in (
                (module.__dict__, before.attributes),
                (module._modules, before.children),
                (module._parameters, before.parameters),
            ):
                if not same(table, content):
                    table.clear()
                    table.update(content)
        recompile(graphs)


@contextmanager
def all_or_nothing(model: nn.Module) -> Generator[Structure]:
    """If an exception leaves, of whatever kind, ``model`` is as it was."""
    structure = Structure(model)
    try:
        yield structure
    except BaseException:
        structure.restore()
        raise


@contextmanager
def restored(model: nn.Module, structure: Structure | None = None) -> Generator[None]:
    """However it is left, the classes, attributes and tables of ``model`` are as they were.

    They are still as in ``structure``, if it is given.
    """
    structure = structure or Structure(model, tables=True)
    try:
        yield
    finally:
        structure.restore_tables()


def same(table: Table, content: Table) -> bool:
    """Whether a table holds these very objects in this order."""
    if not table or not content:
        return not table and not content
    return [*table] == [*content] and all(map(is_, table.values(), content.values()))


def same_memory(parameter: Tensor, data: Tensor) -> bool:
    """Whether ``parameter`` is still in the memory, and of the form, that ``data`` has."""
    if is_lazy(parameter) or is_lazy(data):
        return is_lazy(parameter) and is_lazy(data)  # neither has a shape or memory yet
    if parameter.dtype != data.dtype or parameter.shape != data.shape:
        return False
    try:
        if not parameter.is_meta and parameter.is_set_to(data):
            return True
    except RuntimeError:
        pass  # not all kinds of tensors can tell
    return address(parameter) == address(data) and (
        parameter.device == data.device and parameter.stride() == data.stride()
    )


def address(tensor: Tensor) -> int:
    """Where its numbers are; 0 for tensors that have no memory of their own."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def holders_of(tensor: Tensor) -> int:
    """How many hold the memory of ``tensor``: tensors, and objects in between."""
    untyped: Any = torch._C
    return untyped._storage_Use_Count(tensor.untyped_storage()._cdata)


def _holders_of_two() -> int:
    """What :func:`holders_of` says of a parameter and its `data`."""
    parameter = nn.Parameter(torch.empty(1))
    data = parameter.data
    return holders_of(data)


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Make ``module`` one of ``cls``; what modules do when an attribute is set is not for this."""
    object.__setattr__(module, "__class__", cls)


def set_flag(parameter: nn.Parameter, flag: bool) -> None:
    """Have ``parameter`` train or not."""
    if parameter.requires_grad is flag:
        return
    if parameter.is_inference():
        with torch.inference_mode():
            parameter.requires_grad_(flag)
    else:
        parameter.requires_grad_(flag)


def graph_changed(before: Before) -> bool:
    """Whether a traced module runs another graph than before."""
    module = before.module
    if not isinstance(module, fx.GraphModule):
        return False
    return module.__dict__.get("_graph") is not before.attributes.get("_graph")


def recompile(modules: list[nn.Module]) -> None:
    """Have traced modules run the graph that they hold."""
    for module in modules:
        assert isinstance(module, fx.GraphModule)
        module.graph = module.graph
