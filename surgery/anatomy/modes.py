"""What a model does in training alone, which a forward in evaluation does not show."""

from __future__ import annotations

from functools import lru_cache
from types import FunctionType

from torch import nn

from surgery.anatomy.paths import Paths


def may_read_in_training(paths: Paths) -> bool:
    """Whether the code of a module has the mode and the weight of a part in one function.

    Such a module may multiply with the weight in training alone.
    """
    return any(map(_may_read, paths.modules.values()))


def _may_read(module: nn.Module) -> bool:
    parts = {name for name, part in module._modules.items() if isinstance(part, nn.Linear)}
    return bool(parts) and any(parts & names for names in _trained(type(module)))


@lru_cache(maxsize=1024)
def _trained(cls: type[nn.Module]) -> tuple[frozenset[str], ...]:
    """The names in each function of a class that speaks of its mode and of a weight."""
    functions = (f for base in cls.__mro__ if base is not nn.Module for f in vars(base).values())
    named = (frozenset(f.__code__.co_names) for f in functions if isinstance(f, FunctionType))
    return tuple(names for names in named if {"training", "weight"} <= names)
