"""Listening to one forward: every torch function, and what it reads, makes and writes."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from surgery.anatomy.paths import Paths
from surgery.anatomy.record import Access, Call, Key, Op, Record, Value
from surgery.anatomy.tensors import (
    DESCRIPTIONS,
    among,
    count_of,
    is_index,
    owners_of,
    property_name,
    storage_of,
    tensors_in,
    tensors_inside,
    version_of,
)

_PLAIN = frozenset((int, float, bool, str, type(None), slice, torch.dtype, torch.device))


class Recorder(TorchFunctionMode):
    """Turns what runs while it is active into a :class:`Record`."""

    def __init__(self, paths: Paths, fake: FakeTensorMode | None = None):
        super().__init__()
        self.fake = fake
        self.path_of = {id(module): paths.of(module)[0] for module in paths.modules.values()}
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.current = -1
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.producer: list[int] = []
        self.counts: dict[int, int] = {}
        self.indices: dict[int, torch.Tensor] = {}
        self.strides: list[tuple[int, ...]] = []
        # Tensors are kept alive here, so that no id is given out twice.
        self.known: dict[int, tuple[int, torch.Tensor]] = {}
        self.views: dict[int, list[torch.Tensor]] = {}
        self.twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.named: dict[str, dict[int, str]] = {"parameter": {}, "buffer": {}}
        self.owners = owners_of(paths)
        self.names_of: dict[Any, tuple[tuple[str, ...], str | None]] = {}
        self.storages: list[int] = []
        self.seen: set[int] = set()
        self.accesses: list[Access] = []
        self.direct: set[str] = set()
        self.thread = threading.get_ident()
        self.blind = 0
        self.blind_ops: set[int] = set()
        self.custom = False
        self.followed = True
        self.given: set[int] = set()
        self.strangers: dict[int, torch.Tensor] = {}

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
        self.record(name, func, args, kwargs, result, written, given)
        return result

    def faked(self, thing: Any) -> Any:
        """``thing`` with the model's own tensors replaced by their fake twins.

        Fake mode leaves functions alone that see none but real tensors: they would run, and write.
        """
        if isinstance(thing, torch.Tensor):
            return self.twin(thing)
        if type(thing) in (tuple, list):
            return type(thing)(map(self.faked, thing))
        if type(thing) is dict:
            items = cast("dict[Any, Any]", thing).items()
            return {key: self.faked(item) for key, item in items}
        return thing

    def twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake tensor that stands for a real one, the same every time."""
        if self.fake is None or isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self.twins:
            twin = cast(torch.Tensor, self.fake.from_tensor(tensor))
            self.twins[id(tensor)] = tensor, twin
            if id(tensor) in self.owners:
                self.owners[id(twin)] = self.owners[id(tensor)]
        return self.twins[id(tensor)][1]

    def record(
        self,
        name: str,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        result: Any,
        written: tuple[torch.Tensor, ...],
        given: list[torch.Tensor] | None = None,
    ) -> None:
        """Note one call; one that hands its input on unchanged is no operator."""
        made = tensors_in(result)
        results = [t for t in made if id(t) not in self.known or among(t, written)]
        if not results and not written:
            if not made and name not in DESCRIPTIONS:
                self.see((args, kwargs))
            return
        given = tensors_in((args, kwargs)) if given is None else given
        inputs = [self.number(tensor) for tensor in given]
        noted_args: tuple[Any, ...] = self.noted(args)
        noted_kwargs: dict[str, Any] = self.noted(kwargs) if kwargs else {}
        outputs = [*results, *(t for t in written if not among(t, results))]
        for tensor in written:
            for alias in self.aliases(tensor):
                if not among(alias, outputs):
                    outputs.append(alias)
                    inputs.append(self.number(alias))
                    # Memory of what a function here made is no stranger, seen or not.
                    self.strangers.pop(inputs[-1], None)
        index = len(self.ops)
        numbers = tuple(self.fresh(tensor, index) for tensor in outputs)
        op = Op(index, name, noted_args, noted_kwargs, tuple(inputs), numbers, self.current, func)
        self.ops.append(op)
        if self.blind:
            self.blind_ops.add(index)

    @property
    def running(self) -> str:
        """The module that runs, the innermost."""
        return self.calls[self.current].path

    def see(self, thing: Any) -> None:
        """Note that Python, or code that is not followed, gets the numbers in these tensors."""
        self.seen.update(self.number(tensor) for tensor in tensors_in(thing))

    def fresh(self, tensor: torch.Tensor, producer: int) -> int:
        """A new value for ``tensor``: it was just made, or just written to."""
        number = len(self.shapes)
        if id(tensor) not in self.known and tensor._base is not None:  # pyright: ignore[reportPrivateUsage]
            self.views.setdefault(id(tensor._base), []).append(tensor)  # pyright: ignore[reportPrivateUsage]
        self.known[id(tensor)] = number, tensor
        shape = tuple(tensor.shape)
        self.shapes.append(shape)
        self.dtypes.append(tensor.dtype)
        self.producer.append(producer)
        plain = tensor.layout is torch.strided
        self.strides.append(tensor.stride() if plain else ())
        self.storages.append(storage_of(tensor) if plain else -1)
        count = None if shape else count_of(tensor)
        if count is not None:
            self.counts[number] = count
        return number

    def aliases(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The known tensors that show the same memory as ``tensor``, which was written to."""
        base = tensor._base if tensor._base is not None else tensor  # pyright: ignore[reportPrivateUsage]
        return [base, *self.views.get(id(base), ())]

    def number(self, tensor: torch.Tensor) -> int:
        """The value ``tensor`` holds now."""
        real, tensor = tensor, self.twin(tensor)
        found = self.known.get(id(tensor))
        if found is not None:
            return found[0]
        base = tensor._base  # pyright: ignore[reportPrivateUsage]
        if base is not None and id(base) in self.known:
            # Made where no function is seen (inside a custom autograd function).
            index = len(self.ops)
            inputs = (self.known[id(base)][0],)
            op = Op(
                index, "alias", (Value(inputs[0]),), {}, inputs, (len(self.shapes),), self.current
            )
            self.ops.append(op)
            return self.fresh(tensor, index)
        number = self.fresh(tensor, -1)
        if id(tensor) in self.owners:
            kind, path = self.owners[id(tensor)]
            self.named[kind][number] = path
        elif id(tensor) not in self.given:
            self.strangers[number] = tensor
        if id(tensor) not in self.given and is_index(real):
            self.indices[number] = real.clone()
        return number

    def noted(self, thing: Any) -> Any:
        """Arguments with their tensors replaced by values."""
        if type(thing) in _PLAIN:
            return thing
        if isinstance(thing, torch.Tensor):
            return Value(self.number(thing))
        if isinstance(thing, tuple | list):
            return tuple([self.noted(item) for item in cast("tuple[Any, ...]", thing)])
        if isinstance(thing, dict):
            return {key: self.noted(item) for key, item in cast("dict[Any, Any]", thing).items()}
        return thing

    def enter(
        self, path: str, inputs: dict[str, list[tuple[Key, int]]], kind: str | None, virtual: bool
    ) -> Call:
        number, first = len(self.calls), len(self.ops)
        call = Call(number, path, self.current, inputs, first, virtual=virtual, kind=kind)
        self.calls.append(call)
        self.current = call.number
        return call

    def leave(self, call: Call, outputs: list[tuple[Key, int]]) -> None:
        call.outputs = outputs
        call.last = len(self.ops) - 1
        self.current = call.parent

    def bound(self, module: nn.Module, args: Any, kwargs: Any) -> dict[str, list[tuple[Key, int]]]:
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

    def keyed(self, thing: Any) -> list[tuple[Key, int]]:
        """The tensors in an argument or output, each with its place in it."""
        if isinstance(thing, torch.Tensor):
            return [(None, self.number(thing))]
        if isinstance(thing, dict):
            mapping = cast("dict[Any, Any]", thing)
            # A ModelOutput is both; its indices skip what is None.
            keys = range(len(mapping)) if hasattr(mapping, "to_tuple") else mapping
            items: Any = zip(keys, mapping.values(), strict=True)
        elif isinstance(thing, tuple | list):
            items = enumerate(cast("tuple[Any, ...]", thing))
        elif hasattr(thing, "__dataclass_fields__"):
            items = ((name, getattr(thing, name)) for name in thing.__dataclass_fields__)
        else:
            return []
        return [(key, self.number(item)) for key, item in items if isinstance(item, torch.Tensor)]

    def kept(self) -> set[int]:
        """The values that something still holds when the forward is over.

        They are what it returned, and what it left in attributes, caches or anywhere else for a
        forward to come. Told by counts of references: of what nothing holds, only the recorder's
        own are left.
        """
        # No name here may hold a tensor while references are counted.
        shown = Counter([id(view) for views in self.views.values() for view in views])
        # What nothing else holds has as many references as an object that is held just so.
        (own,) = _references([(-1, object())])
        counts = _references(self.known.values())
        return {
            number
            for (number, tensor), count in zip(self.known.values(), counts, strict=True)
            if count - shown[id(tensor)] > own
        }

    def finished(self, how: str, result: Any) -> Record:
        """The record of a forward that returned ``result``, of which all else is gone."""
        kept = self.kept()
        # Something holds constants before and after; what was made out of sight is not held, but
        # for what is returned.
        returned = {id(t) for t in tensors_inside(result)}
        unknown = {n for n, t in self.strangers.items() if n not in kept or id(t) in returned}
        return Record(
            self.ops,
            self.calls,
            self.shapes,
            self.dtypes,
            self.producer,
            self.named["parameter"],
            self.named["buffer"],
            how,
            self.counts,
            self.indices,
            self.strides,
            self.storages,
            self.seen | kept,
            self.accesses,
            frozenset(self.direct),
            self.followed,
            unknown,
            None if self.custom else self.blind_ops,
            self.seen,
        )


def _references(things: Iterable[tuple[int, Any]]) -> list[int]:
    return [sys.getrefcount(thing) for _, thing in things]
