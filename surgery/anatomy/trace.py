"""Listening to one forward: every torch function, and what it reads, makes and writes."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from surgery.anatomy import graph
from surgery.anatomy.graph import Access, Key, ModuleCall, Recording
from surgery.anatomy.paths import Paths
from surgery.anatomy.roles.operators import kind
from surgery.anatomy.tensors import (
    DESCRIPTIONS,
    among,
    is_index,
    number_in,
    owners_of,
    property_name,
    storage_of,
    tensors_in,
    tensors_inside,
    version_of,
)

_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device))


class Recorder(TorchFunctionMode):
    """Turns what runs while it is active into a :class:`~surgery.anatomy.graph.Recording`."""

    def __init__(self, paths: Paths, fake: FakeTensorMode | None = None):
        super().__init__()
        self.fake = fake
        self.path_of = {id(module): paths.of(module)[0] for module in paths.modules.values()}
        self.graph = fx.Graph()
        self.ops: list[Node] = []
        self.calls: list[ModuleCall] = []
        self.current = -1
        # Tensors are kept alive here, so that no id is given out twice.
        self.known: dict[int, tuple[Node, torch.Tensor]] = {}
        # The tensors of each memory, and who has written to it since they were read.
        self.alike: dict[int, list[int]] = {}
        self.written: dict[int, Node] = {}
        self.twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.named: dict[str, dict[Node, str]] = {"parameter": {}, "buffer": {}}
        self.owners = owners_of(paths)
        self.names_of: dict[Any, tuple[tuple[str, ...], str | None]] = {}
        self.seen: set[Node] = set()
        self.accesses: list[Access] = []
        self.direct: set[str] = set()
        self.thread = threading.get_ident()
        self.blind = 0
        self.blind_ops: set[Node] = set()
        self.custom = False
        self.followed = True
        self.constants: dict[str, torch.Tensor] = {}
        self.indices: dict[Node, torch.Tensor] = {}
        self.strangers: dict[Node, torch.Tensor] = {}
        # The node of a traced graph that runs, if one does.
        self.origin: Node | None = None

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

    def given(self, leaves: Iterable[Any]) -> None:
        """Let these be the arguments of the graph, in order."""
        for number, leaf in enumerate(leaves):
            node = self.graph.placeholder(f"given_{number}")
            if isinstance(leaf, torch.Tensor):
                self.value(node, leaf, None)

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

    def operator(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], inputs: list[Node]
    ) -> Node:
        """The node of an operator that runs now."""
        index, what = len(self.ops), kind(name)
        op = graph.append(self.graph, func, args, kwargs, f"{what}_{index}")
        op.meta.update(
            name=name,
            kind=what,
            index=index,
            call=self.current,
            inputs=tuple(inputs),
            outputs=[],
            maker=op,
        )
        if self.origin is not None:
            op.meta["origin"] = self.origin
        self.ops.append(op)
        if self.blind:
            self.blind_ops.add(op)
        return op

    def wrote(self, op: Node, written: Sequence[torch.Tensor]) -> None:
        """Note that all that shows the memory of what ``op`` has ``written`` is not what it was."""
        for tensor in written:
            for other in self.alike.get(storage_of(tensor), ()):
                if other != id(tensor):
                    self.written[other] = op
                    # Memory of what a function here made is no stranger, seen or not.
                    self.strangers.pop(self.known[other][0], None)

    def rewritten(self, tensor: torch.Tensor, op: Node) -> Node:
        """The node of ``tensor`` since ``op`` has written to its memory."""
        before = self.known[id(tensor)][0]
        name = f"after_{op.name}_{len(op.meta['outputs'])}"
        node = graph.append(self.graph, graph.after, (before, op), {}, name)
        op.meta["outputs"].append(node)
        return self.value(node, tensor, op)

    def hears(self) -> bool:
        """Whether this is the thread of the forward."""
        return threading.get_ident() == self.thread

    @property
    def running(self) -> str:
        """The module that runs, the innermost."""
        return self.calls[self.current].path

    def see(self, thing: Any) -> None:
        """Note that Python, or code that is not followed, gets the numbers in these tensors."""
        self.seen.update(self.node(tensor) for tensor in tensors_in(thing))

    def value(self, node: Node, tensor: torch.Tensor, maker: Node | None) -> Node:
        """``node`` as what ``tensor`` is from now on."""
        plain = tensor.layout is torch.strided
        shape, meta = tuple(tensor.shape), node.meta
        meta["shape"], meta["dtype"], meta["maker"] = shape, tensor.dtype, maker
        meta["strides"] = tensor.stride() if plain else ()
        meta["storage"] = storage = storage_of(tensor) if plain else -1
        count = None if shape else number_in(tensor)
        if count is not None:
            meta["count"] = count
        known = self.known.get(id(tensor))
        if storage >= 0 and (known is None or known[0].meta["storage"] != storage):
            self.alike.setdefault(storage, []).append(id(tensor))
        self.known[id(tensor)] = node, tensor
        self.written.pop(id(tensor), None)
        return node

    def node(self, tensor: torch.Tensor) -> Node:
        """The node of what ``tensor`` holds now."""
        found = self.known.get(id(tensor))
        if found is None:
            real, tensor = tensor, self.twin(tensor)
            found = self.known.get(id(tensor))
        else:
            real = tensor
        if found is not None:
            writer = self.written.get(id(tensor))
            return found[0] if writer is None else self.rewritten(tensor, writer)
        base = tensor._base  # pyright: ignore[reportPrivateUsage]
        if base is not None and id(base) in self.known:
            # Made where no function is seen (inside a custom autograd function).
            origin = self.node(base)
            made = self._constant(tensor)
            op = self.operator("alias", graph.hidden, (origin, made), {}, [origin])
            op.meta["outputs"].append(op)
            return self.value(op, tensor, op)
        if id(tensor) in self.owners:
            owner, path = self.owners[id(tensor)]
            node = self.graph.create_node("get_attr", path, name=f"own_{len(self.known)}")
            self.named[owner][node] = path
        else:
            node = self._constant(tensor)
            self.strangers[node] = tensor
        if is_index(real):
            self.indices[node] = real.clone()
        return self.value(node, tensor, None)

    def _constant(self, tensor: torch.Tensor) -> Node:
        """A tensor that was there before, or came from code that is not seen."""
        name = f"constant_{len(self.constants)}"
        # Later operators may write to it.
        self.constants[name] = tensor.clone() if type(tensor) is torch.Tensor else tensor
        return self.graph.create_node("get_attr", name, name=name)

    def noted(self, thing: Any, inputs: list[Node]) -> Any:
        """Arguments with their tensors replaced by nodes, which join ``inputs``."""
        if type(thing) in _PLAIN:
            return thing
        if isinstance(thing, torch.Tensor):
            node = self.node(thing)
            inputs.append(node)
            return node
        if isinstance(thing, list):
            return [self.noted(item, inputs) for item in cast("list[Any]", thing)]
        if isinstance(thing, tuple):
            return tuple([self.noted(item, inputs) for item in cast("tuple[Any, ...]", thing)])
        if isinstance(thing, dict):
            items = cast("dict[Any, Any]", thing).items()
            return {key: self.noted(item, inputs) for key, item in items}
        if isinstance(thing, slice):
            ends = cast("slice[Any, Any, Any]", thing)
            parts = (ends.start, ends.stop, ends.step)
            return slice(*(self.noted(part, inputs) for part in parts))
        return thing

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

    def keyed(self, thing: Any) -> list[tuple[Key, Node]]:
        """The tensors in an argument or output, each with its place in it."""
        if isinstance(thing, torch.Tensor):
            return [(None, self.node(thing))]
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
        return [(key, self.node(item)) for key, item in items if isinstance(item, torch.Tensor)]

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
