"""Running a model without a trace: all it may change is put back as it was."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

KEPT_PARAMETERS = 20_000_000
"""Parameters are copied too (a forward may write to them) unless there are more than this."""

_ONE = threading.RLock()
"""Held while a model is run without a trace: what is set for all threads is restored in order."""

_CONTAINERS = (dict, OrderedDict, list, set)
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


@contextmanager
def untouched(model: nn.Module, copy: bool, training: bool = False) -> Generator[None]:
    """Evaluate ``model`` inside, or train it; flags, attributes, tensors and generators are restored after.

    With ``copy`` the contents of buffers and parameters are kept, too; a run on fake tensors
    never writes them. Other threads wait for their turn.
    """
    with _ONE:
        yield from _untouched(model, copy, training)


def _untouched(model: nn.Module, copy: bool, training: bool) -> Generator[None]:
    modules = list(model.modules())
    attributes = [_attributes(module) for module in modules]
    tensors = _contents(model) if copy else []
    generators = _generators()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # Not eval(): models override train() to merge weights and the like.
        for module in modules:
            module.__dict__["training"] = training
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, kept in zip(modules, attributes, strict=True):
            _restore(module, kept)
        _write_back(tensors)
        _reseed(generators)


@contextmanager
def uncollected() -> Generator[None]:
    """No cyclic garbage collection inside.

    Records, selections, new modules: thousands of small objects, all of them alive. Walking them
    again and again takes longer than making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Every attribute with a shallow copy of its content where that can change in place."""
    return {
        name: (value, value.copy() if type(value) in _CONTAINERS else None)
        for name, value in module.__dict__.items()
    }


def _restore(module: nn.Module, kept: dict[str, tuple[Any, Any]]) -> None:
    now = module.__dict__
    for name in [name for name in now if name not in kept]:
        del now[name]
    for name, (value, content) in kept.items():
        if content is not None and _changed(value, content):
            value.clear()
            _refill(value, content)
        now[name] = value


def _refill(value: Any, content: Any) -> None:
    if hasattr(value, "update"):
        value.update(content)
    else:
        value.extend(content)


def _changed(value: Any, content: Any) -> bool:
    if len(value) != len(content):
        return True
    # By identity: comparing tensors would ask for their elements.
    if isinstance(value, dict):
        return any(key not in value or value[key] is not content[key] for key in content)
    return any(a is not b for a, b in zip(value, content, strict=True))


def _contents(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tensors of the model, each with an alias that keeps its memory and a copy of its content."""
    parameters = list(model.parameters())
    small = sum(parameter.numel() for parameter in parameters) <= KEPT_PARAMETERS
    tensors = [*(parameters if small else ()), *model.buffers()]
    # Of packed and wrapped kinds (quantised weights) neither memory nor bits can be asked for.
    plain = [t for t in tensors if type(t) in _PLAIN and t.layout is torch.strided]
    return [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in plain]


def _write_back(tensors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    # By content, since batch norm writes without counting versions; and only what differs, since
    # a write would spoil a backward that is still to come.
    with torch.no_grad():
        for tensor, memory, content in tensors:
            if tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
            if not torch.equal(tensor, content):
                tensor.copy_(content)


def _generators() -> tuple[Any, Any, Any, Any]:
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda, random.getstate(), numpy and numpy.random.get_state()


def _reseed(states: tuple[Any, Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state_all(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        sys.modules["numpy"].random.set_state(states[3])
