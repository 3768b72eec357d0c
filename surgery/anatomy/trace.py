"""Listening to one forward: every torch function, and what it reads, makes and writes."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from surgery.anatomy import graph
from surgery.anatomy.graph import Access, Key, ModuleCall, Recording
from surgery.anatomy.paths import Paths
from surgery.anatomy.tensor_nodes import TensorNodes
from surgery.anatomy.tensors import (
    DESCRIPTIONS,
    among,
    property_name,
    tensors_in,
    tensors_inside,
    version_of,
)


class Recorder(TensorNodes, TorchFunctionMode):
    """Turns what runs while it is active into a :class:`~surgery.anatomy.graph.Recording`."""

    def __init__(self, paths: Paths, fake: FakeTensorMode | None = None):
        super().__init__(paths, fake)
        self.calls: list[ModuleCall] = []
        self.names_of: dict[Any, tuple[tuple[str, ...], str | None]] = {}
        self.accesses: list[Access] = []
        self.direct: set[str] = set()
        self.thread = threading.get_ident()
        self.custom = False
        # The path that paths in a graph within a traced graph begin with, while one runs.
        self.within: str | None = None
        # Whether a function runs that is seen as a whole, whatever modules it calls.
        self.deaf = False
        self.followed = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__ if hasattr(func, "__name__") else str(func)
        if name == "__get__":
            result = func(*args, **kwargs)
            if isinstance(result, torch.Tensor):
                args = self.faked(args)
                result = func(*args, **kwargs)
                self.record(property_name(func), func, args, kwargs, result, ())
            return result
        if self.fake is not None:
            args, kwargs = self.faked(args), self.faked(kwargs)
        given = tensors_in((args, kwargs)) if kwargs else tensors_in(args)
        before = [version_of(tensor) for tensor in given]
        result = func(*args, **kwargs)
        written = tuple(
            t for t, version in zip(given, before, strict=True) if version_of(t) != version
        )
        self.record(name, func, args, kwargs, result, written)
        return result

    def record(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        written: Sequence[torch.Tensor],
    ) -> None:
        """Note one call; one that hands its input on unchanged is no operator."""
        made = [((), result)] if isinstance(result, torch.Tensor) else list(_parts(result))
        results = [(at, t) for at, t in made if id(t) not in self.known or among(t, written)]
        if not results and not written:
            if not made and name not in DESCRIPTIONS:
                self.see((args, kwargs))
            return
        inputs: list[Node] = []
        noted_args: tuple[Any, ...] = self.noted(args, inputs)
        noted_kwargs: dict[str, Any] = self.noted(kwargs, inputs) if kwargs else {}
        op = self.operator(name, func, noted_args, noted_kwargs, inputs)
        if written:
            self.wrote(op, written)
        for at, tensor in results:
            node = op
            for key in at:
                node = graph.append(self.graph, graph.item, (node, key), {}, f"{node.name}_{key}")
            op.meta["outputs"].append(self.value(node, tensor, op))
        for tensor in written:
            if not any(tensor is one for _, one in results):
                self.rewritten(tensor, op)

    def hears(self) -> bool:
        """Whether this is the thread of the forward."""
        return threading.get_ident() == self.thread

    @property
    def running(self) -> str:
        """The module that runs, the innermost."""
        return self.calls[self.current].path

    def enter(
        self, path: str, inputs: dict[str, list[tuple[Key, Node]]], kind: str | None, virtual: bool
    ) -> ModuleCall:
        number, first = len(self.calls), len(self.ops)
        call = ModuleCall(number, path, self.current, inputs, first, virtual=virtual, kind=kind)
        self.calls.append(call)
        self.current = call.number
        return call

    def leave(self, call: ModuleCall, outputs: list[tuple[Key, Node]]) -> None:
        call.outputs = outputs
        call.last = len(self.ops) - 1
        self.current = call.parent

    def bound(self, module: nn.Module, args: Any, kwargs: Any) -> dict[str, list[tuple[Key, Node]]]:
        """The tensors a module was called with, by the names of its ``forward``."""
        names, rest = self.signature(module)
        given: dict[str, Any] = dict(zip(names, args, strict=False))
        if len(args) > len(names):
            given[rest or "args"] = tuple(args[len(names) :])
        given.update(kwargs)
        return {name: found for name, value in given.items() if (found := self.keyed(value))}

    def signature(self, module: nn.Module) -> tuple[tuple[str, ...], str | None]:
        own = module.__dict__.get("forward")
        key = type(module) if own is None else own
        if key not in self.names_of:
            names: list[str] = []
            rest: str | None = None
            for parameter in inspect.signature(module.forward).parameters.values():
                if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                    names.append(parameter.name)
                elif parameter.kind is parameter.VAR_POSITIONAL:
                    rest = parameter.name
            self.names_of[key] = tuple(names), rest
        return self.names_of[key]

    def kept(self) -> set[Node]:
        """The values that something still holds when the forward is over.

        They are what it returned, and what it left in attributes, caches or anywhere else for a
        forward to come. Told by counts of references: of what nothing holds, only the recorder's
        own are left.
        """
        # What nothing else holds has as many references as an object that is held just so.
        (own,) = _references([(None, object())])
        counts = _references(self.known.values())
        return {
            node
            for (node, _), count in zip(self.known.values(), counts, strict=True)
            if count > own
        }

    def finished(self, how: str, result: Any) -> Recording:
        """The recording of a forward that returned ``result``, of which all else is gone."""
        kept = self.kept()
        # Something holds constants before and after; what was made out of sight is not held, but
        # for what is returned.
        returned = {id(t) for t in tensors_inside(result)}
        unknown = {n for n, t in self.strangers.items() if n not in kept or id(t) in returned}
        self.graph.output([self.node(t) for t in tensors_in(result)])
        return Recording(
            self.graph,
            self.ops,
            self.calls,
            self.named["parameter"],
            self.named["buffer"],
            how,
            self.constants,
            self.indices,
            self.seen | kept,
            self.accesses,
            frozenset(self.direct),
            self.followed,
            unknown,
            None if self.custom else self.blind_ops,
            self.seen,
        )


def _parts(result: Any, at: tuple[Any, ...] = ()) -> Iterable[tuple[tuple[Any, ...], torch.Tensor]]:
    """The tensors in a result, each with the keys that lead to it."""
    if isinstance(result, torch.Tensor):
        yield at, result
    elif isinstance(result, tuple | list):
        for key, part in enumerate(cast("tuple[Any, ...]", result)):
            yield from _parts(part, (*at, key))
    elif isinstance(result, dict):
        for key, part in cast("dict[Any, Any]", result).items():
            yield from _parts(part, (*at, key))


def _references(things: Iterable[tuple[Node | None, Any]]) -> list[int]:
    return [sys.getrefcount(thing) for _, thing in things]
