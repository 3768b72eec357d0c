"""Whose function is being called: that of a module's own forward, or one that a hook runs in it."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn


def around(depth: int) -> int:
    """What tells the running call of the function ``depth`` calls up; 0 where it is compiled."""
    return 0 if torch.compiler.is_dynamo_compiling() else id(sys._getframe(depth + 1))


def in_hook(beginning: int) -> bool:
    """Whether a hook runs that some module called since the call at ``beginning``."""
    frame: Any = sys._getframe(1)
    while frame is not None and id(frame) != beginning:
        lines = _FORWARD.get(id(frame.f_code))
        if lines is not None and frame.f_lineno not in lines:
            return True
        frame = frame.f_back
    return False


def are_inside(module: nn.Module) -> bool:
    """Whether a part of ``module`` has hooks that run in its forward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    parts = [part for part in module.modules() if part is not module]
    return any(getattr(part, kind) for part in parts for kind in hooks)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """``code`` and that of functions in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _forward_lines() -> dict[int, set[int]]:
    """The code by which modules run hooks, and the lines on which it runs something else.

    Code is told by its id, as to hash it takes long; that of `nn.Module` stays.
    """
    found: dict[int, set[int]] = {}
    runs: Any = nn.Module._call_impl  # pyright: ignore
    for code in _codes(runs.__code__):
        for instruction in dis.get_instructions(code):
            line = instruction.positions and instruction.positions.lineno
            if line and instruction.argval in ("forward_call", "inner"):
                found.setdefault(id(code), set()).add(line)
    return found


_FORWARD = _forward_lines()
