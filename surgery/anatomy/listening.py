"""Listening to the modules of a model: which are called, and which are read from outside."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from surgery.anatomy.interpret import interpret
from surgery.anatomy.trace import Recorder


@contextmanager
def listening(recorder: Recorder) -> Generator[None]:
    """Tell ``recorder`` of every module called in this thread, and of parameters taken by name."""
    # nn.Module's own doors, which all calls and names pass: no module's own hooks are touched.
    untyped: Any = nn.Module
    doors = untyped.__call__, untyped.__getattr__
    untyped.__call__ = _called(recorder, doors[0])
    untyped.__getattr__ = _taken(recorder, doors[1])
    try:
        yield
    finally:
        untyped.__call__, untyped.__getattr__ = doors


def _called(recorder: Recorder, original: Any) -> Any:
    thread = threading.get_ident()

    def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = recorder.path_of.get(id(module))
        if path is None:
            return original(module, *args, **kwargs)
        if threading.get_ident() != thread:
            recorder.followed = False
            return original(module, *args, **kwargs)
        current = recorder.current
        with _quiet():
            frame = recorder.enter(path, recorder.bound(module, args, kwargs), virtual=False)
        try:
            if isinstance(module, fx.GraphModule):
                result = interpret(recorder, module, path, args, kwargs)
            else:
                result = original(module, *args, **kwargs)
        except BaseException:
            recorder.current = current
            raise
        with _quiet():
            recorder.leave(frame, recorder.keyed(result))
        return result

    return __call__


def _taken(recorder: Recorder, original: Any) -> Any:
    def __getattr__(module: nn.Module, name: str) -> Any:
        found = original(module, name)
        if name in module._parameters:
            path = recorder.path_of.get(id(module))
            if path is not None:
                recorder.accesses.add((path, name, recorder.current))
        return found

    return __getattr__


def _quiet() -> Any:
    """What the recorder itself asks of tensors is no part of the forward."""
    return torch._C.DisableTorchFunction()  # pyright: ignore[reportPrivateUsage]
