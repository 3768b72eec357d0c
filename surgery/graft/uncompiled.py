"""How the compiler is to take the channel, and modes. Importing this imports the compiler: a second.

Within a graph it follows the channel's functions and those of modes. Where it gives up around them,
it would compile each by itself. The channel can't see there where it runs, and of modes it does not
guard which function they are told of: one that asked for `grad_fn` got the tensor of another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any

import torch
from torch._dynamo.eval_frame import skip_code

from surgery.graft.attention.attending import attending as attending_compiled
from surgery.graft.channel import read_now

_compiler: Any = torch.compiler
look = _compiler.disable(read_now)
attending = _compiler.disable(attending_compiled)

# By their names: the last one stands above, and imports this file when it is compiled.
_MODULES = (
    "surgery.graft.channel",
    "surgery.graft.hooks",
    "surgery.anatomy.roles.follower",
    "surgery.anatomy.roles.softmaxes",
    "surgery.anatomy.roles.trail",
    "surgery.huggingface.flash_attention",
    "surgery.graft.attention.axes",
    "surgery.graft.attention.calls",
    "surgery.graft.attention.flex",
    "surgery.graft.attention.interfaces",
    "surgery.graft.attention.masks",
    "surgery.graft.attention.products",
    "surgery.graft.attention.reroute",
    "surgery.graft.attention.running",
    "surgery.graft.attention.steps",
    "surgery.graft.attention.windows",
    "surgery.graft.passing",
)


def _codes(space: Any, home: str) -> Iterator[CodeType]:
    """The code of the functions of a module, and of its classes, that are written in it."""
    for name in dir(space):
        value = getattr(space, name)
        if isinstance(value, FunctionType) and value.__module__ == home:
            yield value.__code__
        elif inspect.isclass(value) and value.__module__ == home and value is not space:
            yield from _codes(value, home)


for _name in _MODULES:
    for _code in _codes(import_module(_name), _name):
        skip_code(_code)
