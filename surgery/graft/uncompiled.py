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

from surgery.anatomy.roles import follower, softmaxes
from surgery.graft import channel, hooks
from surgery.graft.attention import (
    axes,
    calls,
    flex,
    interfaces,
    masks,
    products,
    reroute,
    running,
    steps,
    windows,
)
from surgery.graft.attention.attending import attending as attending_compiled
from surgery.huggingface import flash_attention

_compiler: Any = torch.compiler
look = _compiler.disable(channel.read_now)
attending = _compiler.disable(attending_compiled)

_MODULES = (
    channel,
    hooks,
    follower,
    softmaxes,
    flash_attention,
    axes,
    calls,
    flex,
    interfaces,
    masks,
    products,
    reroute,
    running,
    steps,
    windows,
)


def _codes(space: Any, home: str) -> Iterator[CodeType]:
    """The code of the functions of a module, and of its classes, that are written in it."""
    for name in dir(space):
        value = getattr(space, name)
        if isinstance(value, FunctionType) and value.__module__ == home:
            yield value.__code__
        elif inspect.isclass(value) and value.__module__ == home and value is not space:
            yield from _codes(value, home)


# This one stands above: when it is compiled it imports what is here. So it is told of by its name.
_ABOVE = import_module("surgery.graft.passing")
for _module in (*_MODULES, _ABOVE):
    for _code in _codes(_module, _module.__name__):
        skip_code(_code)
