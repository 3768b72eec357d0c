"""Listening to the modules of a model: which are called, and which are read from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from surgery.anatomy.graph import Access
from surgery.anatomy.lift import class_name, interpret
from surgery.anatomy.trace import Recorder


@contextmanager
def listening(recorder: Recorder) -> Generator[None]:
    """Tell ``recorder`` of every module called in this thread, and of parameters taken by name."""
    # nn.Module's own doors, which all calls and names pass: no module's own hooks are touched.
    doors: tuple[tuple[Any, str, Callable[[Recorder, Any], Any]], ...] = (
        (nn.Module, "__call__", _called),
        (nn.Module, "__getattr__", _taken),
        (torch.no_grad, "__enter__", _blinded),
        (torch.no_grad, "__exit__", _sighted),
        (torch.autograd.Function, "apply", _customised),
    )
    # All threads pass these doors; `untouched` sees to it that one at a time listens at them.
    originals = [vars(cls)[name] for cls, name, _ in doors]
    try:
        for (cls, name, through), original in zip(doors, originals, strict=True):
            setattr(cls, name, through(recorder, original))
        yield
    finally:
        for (cls, name, _), original in zip(doors, originals, strict=True):
            setattr(cls, name, original)


def _called(recorder: Recorder, original: Any) -> Any:
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = recorder.path_of.get(id(module))
        if path is None or recorder.deaf:
            return original(module, *args, **kwargs)
        if not recorder.hears():
            recorder.followed = False
            return original(module, *args, **kwargs)
        current = recorder.current
        with _quiet():
            given, kind = recorder.bound(module, args, kwargs), class_name(type(module))
            frame = recorder.enter(path, given, kind, virtual=False)
        try:
            if isinstance(module, fx.GraphModule):
                prefix = path if recorder.within is None else recorder.within
                result = interpret(recorder, module, prefix, args, kwargs)
            else:
                result = original(module, *args, **kwargs)
        except BaseException:
            recorder.current = current
            raise
        with _quiet():
            recorder.leave(frame, recorder.keyed(result))
        return result

    return call


def _taken(recorder: Recorder, original: Any) -> Any:
    def take(module: nn.Module, name: str) -> Any:
        found = original(module, name)
        path = recorder.path_of.get(id(module))
        if path is None or recorder.current < 0 or not recorder.hears():
            return found
        own = recorder.running == path
        if not own:
            frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
            while frame is not None and frame.f_code.co_name == "__getattr__":
                frame = frame.f_back
            if frame is not None and _is_forward_of(module, frame):
                own = True
                recorder.direct.add(path)
        if name in module._parameters:
            recorder.accesses.append(Access(path, name, recorder.current, len(recorder.ops), own))
        return found

    return take


def _is_forward_of(module: nn.Module, frame: FrameType) -> bool:
    """Whether a forward of ``module`` runs in ``frame``: some are called by name, not as modules."""
    code = frame.f_code
    first = code.co_varnames[:1]
    return code.co_name == "forward" and bool(first) and frame.f_locals.get(first[0]) is module


def _blinded(recorder: Recorder, original: Any) -> Any:
    def enter(context: Any) -> None:
        original(context)
        recorder.blind += recorder.hears()

    return enter


def _sighted(recorder: Recorder, original: Any) -> Any:
    def leave(context: Any, *args: Any) -> None:
        original(context, *args)
        recorder.blind -= recorder.hears()

    return leave


def _customised(recorder: Recorder, original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        recorder.custom = recorder.custom or recorder.hears()
        return original.__get__(None, cls)(*args, **kwargs)

    return classmethod(apply)


def _quiet() -> Any:
    """What the recorder itself asks of tensors is no part of the forward."""
    return torch._C.DisableTorchFunction()  # pyright: ignore[reportPrivateUsage]
