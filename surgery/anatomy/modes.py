"""What a model does in training alone, which a forward in evaluation does not show."""

from __future__ import annotations

from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

from surgery.anatomy.paths import Paths
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import linears
from surgery.anatomy.run import record
from surgery.language.diagnostics import SurgeryError


def read_in_training(model: nn.Module, example_inputs: Any, paths: Paths) -> frozenset[str]:
    """The paths of modules whose weight another multiplies with in training.

    A forward tells, where the code of a module has the mode and the weight of a part in one
    function. What a model that does not run in training would read is not known.
    """
    if not any(map(_may_read, paths.modules.values())):
        return frozenset()
    try:
        flow = Flow(record(model, example_inputs, paths, training=True), paths)
    except SurgeryError:
        return frozenset()
    read = (one.weight.rpartition(".")[0] for one in linears(flow).values() if one.call is None)
    return frozenset(read)


def _may_read(module: nn.Module) -> bool:
    parts = {name for name, part in module._modules.items() if isinstance(part, nn.Linear)}
    return bool(parts) and any(parts & names for names in _trained(type(module)))


@lru_cache(maxsize=1024)
def _trained(cls: type[nn.Module]) -> tuple[frozenset[str], ...]:
    """The names in each function of a class that speaks of its mode and of a weight."""
    functions = (f for base in cls.__mro__ if base is not nn.Module for f in vars(base).values())
    named = (frozenset(f.__code__.co_names) for f in functions if isinstance(f, FunctionType))
    return tuple(names for names in named if {"training", "weight"} <= names)
