"""Calling a torch function from within a mode, so that it can be compiled, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

_WRITTEN = frozenset(
    name
    for name, function in vars(torch.Tensor).items()
    if isinstance(function, FunctionType) and not name.startswith("_")
)
"""The methods of tensors that are written in Python."""


def called(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``func(*args, **kwargs)``."""
    # The compiler does not follow `super()` in a method that is no attribute of its tensor.
    if getattr(func, "__name__", "") in _WRITTEN and args and torch.compiler.is_compiling():
        return getattr(args[0], func.__name__)(*args[1:], **kwargs)
    return func(*args, **kwargs) if kwargs else func(*args)
