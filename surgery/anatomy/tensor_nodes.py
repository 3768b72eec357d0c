"""The graph of a forward while it is written: which node each tensor is of, at any time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node

from surgery.anatomy import graph
from surgery.anatomy.graph import Key
from surgery.anatomy.paths import Paths
from surgery.anatomy.roles.operators import kind
from surgery.anatomy.tensors import (
    is_index,
    number_in,
    owners_of,
    storage_of,
    tensors_in,
)

_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device))


class TensorNodes:
    """A graph that grows, and what its tensors are known by.

    A tensor is another value after each write to its memory, through whichever view. ``current``
    is the number of the call that runs, -1 outside of any.
    """

    def __init__(self, paths: Paths, fake: FakeTensorMode | None = None):
        super().__init__()
        self.fake = fake
        self.path_of = {id(module): paths.of(module)[0] for module in paths.modules.values()}
        self.graph = fx.Graph()
        self.ops: list[Node] = []
        self.current = -1
        # Tensors are kept alive here, so that no id is given out twice.
        self.known: dict[int, tuple[Node, torch.Tensor]] = {}
        # The tensors of each memory, and who has written to it since they were read.
        self.alike: dict[int, list[int]] = {}
        self.written: dict[int, Node] = {}
        self.twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.named: dict[str, dict[Node, str]] = {"parameter": {}, "buffer": {}}
        self.owners = owners_of(paths)
        self.seen: set[Node] = set()
        self.blind = 0
        self.blind_ops: set[Node] = set()
        self.constants: dict[str, torch.Tensor] = {}
        self.indices: dict[Node, torch.Tensor] = {}
        self.strangers: dict[Node, torch.Tensor] = {}
        # The node of a traced graph that runs, if one does.
        self.origin: Node | None = None

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
