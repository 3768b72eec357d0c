"""Stacks that embed a token sequence: who reads the ids, looks them up, and hands the states on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch.fx import Node

from surgery.anatomy.dims import TURNED
from surgery.anatomy.graph import (
    ModuleCall,
    call_of,
    dtype_of,
    index_of,
    inputs_of,
    kind_of,
    maker_of,
    outputs_of,
    readers,
    shape_of,
)
from surgery.anatomy.roles.exits import Exits, Stack
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.memory import memory_of
from surgery.anatomy.roles.padding import unpadded
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.site import Memory, Port, Site, Tokens
from surgery.huggingface.names import ARGUMENTS, CAUSAL, marks_padding

_REPLACING = ("where", "masked_fill", "setitem", "getitem")


class Stacks:
    """Finds where token sequences enter a model, and by ``exits`` where they leave it.

    ``obstacle`` then says why some are out of reach, if so.
    """

    def __init__(self, flow: Flow, ports: Ports, exits: Exits):
        self.flow = flow
        self.recording = flow.recording
        self.ports = ports
        self.exits = exits
        self.obstacle: str | None = None

    def sites(self) -> Iterator[Site]:
        """A site for each stack, in the order in which they run.

        Where nothing looks the very ids up, some of them may be replaced before: those of images.
        """
        yield from list(self._looked_up(self._unpadded)) or self._looked_up(self._unmasked)

    def _looked_up(self, origin: Callable[[Node], Node]) -> Iterator[Site]:
        """Sites with lookups of what ``origin`` tells to be the ids that a reader is given."""
        found: dict[str, tuple[int, Stack]] = {}
        for op in self.flow.ops:
            kind = kind_of(op)
            if kind != "embedding" or len(inputs_of(op)) < 2:
                continue
            stack = self._stack(op, origin)
            if stack is None:
                self._note(op)
                continue
            rows = max(shape_of(v)[0] for v in inputs_of(op) if self.flow.owned(v))
            path = stack.path
            if path not in found or rows > found[path][0]:
                found[path] = rows, stack
        stacks = [stack for _, stack in found.values()]
        for stack in stacks:
            site = self._site(stack, stacks)
            if site is not None:
                yield site

    def _unpadded(self, value: Node) -> Node:
        return unpadded(self.flow, value)

    def _unmasked(self, value: Node) -> Node:
        """``value`` before some of its elements were replaced, or a slice took them all.

        Gemma 4, Granite Speech: ids that stand for images or sounds; XLM: the last so many ids, which
        are all where nothing is cached.
        """
        flow = self.flow
        while True:
            value = flow.same(value)
            op = maker_of(value)
            if op is None or kind_of(op) not in _REPLACING:
                return value
            alike = [
                v
                for v in inputs_of(op)
                if shape_of(v) == shape_of(value) and dtype_of(v) == dtype_of(value)
            ]
            if len(alike) != 1:
                return value
            value = alike[0]

    def _stack(self, lookup: Node, origin: Callable[[Node], Node]) -> Stack | None:
        """The innermost call with both ``lookup`` and layers inside that is given its ids.

        In a traced graph it is the graph itself: of modules that it flattened only names are left.
        """
        given = [v for v in inputs_of(lookup) if not dtype_of(v).is_floating_point]
        if not given or not any(self.flow.owned(v) for v in inputs_of(lookup)):
            return None
        ids = origin(given[0])
        path: str | None = None
        for call in self.recording.stack(call_of(lookup)):
            for name, values in call.inputs.items():
                for key, value in values:
                    whole = key is None and len(shape_of(value)) == 2
                    if whole and self.flow.same(value) == ids and self.exits.runs(call, lookup):
                        path = call.path if path is None else path
                        if not call.virtual:
                            return Stack(lookup, call, name, value, path)
        return None

    def _site(self, stack: Stack, stacks: list[Stack]) -> Site | None:
        lookup, reader = stack.lookup, stack.reader
        embedding = self.recording.calls[call_of(lookup)]
        module = self.flow.paths.modules.get(reader.path)
        owner = self.flow.paths.modules.get(embedding.path)
        embedded = self.ports.main_output(embedding)
        latent = self.exits.latent(stack)
        exit = None if latent else self.exits.port(stack)
        own = owner is not None and "weight" in owner._parameters
        if module is None or not own or embedded is None:
            return None
        if exit is None and not latent:
            self.obstacle = (
                f"`{reader.path or type(module).__name__}` pools or picks the states of its tokens "
                "on their way, so those of others in front could not be dropped again"
            )
            return None
        counts, padding = self._counting(reader, stack.argument, lookup)
        names = self._names(reader, stack.argument, module)
        tokens = Tokens(
            stack.path,
            embedding.path,
            exit,
            stack.argument,
            **names,
            counts=counts,
            padding=padding,
            length_first=self._length_first(stack),
            causal=self._causal(stack, {*names.values()}),
            streams=self.exits.streams(stack),
            memory=self._memory(stack, exit, names["mask"], stacks),
        )
        paths = self.flow.paths.of(self.flow.paths.modules[stack.path])
        out = exit or self.ports.main_output(reader) or Port(stack.path, "output")
        return Site(stack.path, paths, tokens, "tokens", None, embedded, out)

    def _note(self, lookup: Node) -> None:
        """Say so if ``lookup`` is of ids that a module with layers makes of those it is given."""
        for value in inputs_of(lookup):
            for call in self.recording.stack(call_of(lookup)):
                given = [v for values in call.inputs.values() for _, v in values]
                made = any(
                    not dtype_of(v).is_floating_point and self.flow.depends(value, v) for v in given
                )
                wide = shape_of(value)[:1] == shape_of(outputs_of(lookup)[0])[:1]
                if made and wide and self.exits.runs(call, lookup) and not call.virtual:
                    name = call.path or type(self.flow.paths.modules[call.path]).__name__
                    self.obstacle = (
                        f"`{name}` makes other ids of those it is given and looks these up, so "
                        "nothing can join the ids in front"
                    )
                    return

    def _length_first(self, stack: Stack) -> bool:
        """Whether tokens are looked up with the length first (XLNet, FSMT)."""
        dims, looked_up = self.flow.dims, outputs_of(stack.lookup)[0]
        swapped = dims.alike(looked_up, stack.ids, TURNED)
        return swapped and not dims.alike(looked_up, stack.ids)

    def _causal(self, stack: Stack, known: set[Any]) -> str | None:
        """The argument that tells of each token which it sees, [length, length]."""
        batch, length = shape_of(stack.ids)
        for name, values in stack.reader.inputs.items():
            key, value = values[0]
            if key is not None or name in known or len(shape_of(value)) != 2:
                continue
            doubt = self.flow.is_hidden(value) or batch != length
            if self.flow.dims.alike(value, stack.ids, ((0, 1), (1, 1)), doubt):
                return name
        accepted = inspect.signature(self.flow.paths.modules[stack.reader.path].forward).parameters
        return CAUSAL if CAUSAL in accepted else None

    def _memory(
        self, stack: Stack, exit: Port | None, mask: str | None, stacks: list[Stack]
    ) -> Memory | None:
        """Who attends to the states, if a decoder does."""
        last = self.exits.last(stack)
        returned = self.exits.returned(stack.reader, stack.ids, last)
        if returned is None:
            return None
        masks = stack.reader.inputs.get(mask or "", [])
        value = masks[0][1] if masks else None
        readers = [other.reader for other in stacks]
        found = memory_of(self.flow, stack.reader, last, returned, value, readers)
        within = exit is not None and exit.path != stack.reader.path
        return found if found is None or within or not found.apart else None

    def _names(self, reader: ModuleCall, ids: str, module: Any) -> dict[str, Any]:
        """The other arguments by what they are for: those given, else as they are mostly called."""
        accepted = [name for name in inspect.signature(module.forward).parameters if name != ids]
        found = {
            use: next((name for name in names if name in accepted), None)
            for use, names in ARGUMENTS.items()
        }
        given = reader.inputs[ids][0][1]
        for name, values in reader.inputs.items():
            key, value = values[0]
            flat = key is None and len(shape_of(value)) == 2
            alike = flat and self.flow.dims.alike(value, given)
            known = name == ids or name in found.values() or name not in accepted
            if known or not alike or dtype_of(value).is_floating_point:
                continue
            use = self._use(reader, value)
            # In a padding mask ones are what is not there.
            if use is not None and found[use] is None and not marks_padding(name):
                found[use] = name
        return found

    def _use(self, reader: ModuleCall, value: Node) -> str | None:
        """A table is looked up by types or positions; what reaches a softmax is a mask."""
        for op in readers(value):
            inside = reader.first <= index_of(op) <= reader.last
            if kind_of(op) == "embedding" and inside:
                return "types"
        attends = {"softmax", "scaled_dot_product_attention"}
        reached = self.flow.forward(value, lambda op: kind_of(op) in attends)
        return "mask" if any(kind_of(op) in attends for op in reached) else None

    def _counting(self, reader: ModuleCall, ids: str, lookup: Node) -> tuple[Any, int | None]:
        """How positions are told that are not given, from what they are looked up by."""
        given = reader.inputs[ids][0][1]
        found: tuple[Any, int | None] = ("places", None)
        for op in self.flow.ops[reader.first : reader.last + 1]:
            if kind_of(op) != "embedding" or op is lookup:
                continue
            sums = [total for value in inputs_of(op) for total in self._sums(value)]
            if not sums:
                continue
            # OPT counts by the mask, RoBERTa by the ids that are not padding.
            if not any(self.flow.depends(total, given) for total in sums):
                return "mask", None
            # RoBERTa: types are picked by positions, too, but only the table of these has a padding row.
            padding = cast("int | None", op.kwargs.get("padding_idx"))
            found = "ids", found[1] if found[1] is not None else padding
        return found

    def _sums(self, value: Node) -> list[Node]:
        """The running sums behind an integer ``value``."""
        if dtype_of(value).is_floating_point:
            return []
        behind = self.flow.backward(value, lambda _value, _op: False)
        return [outputs_of(op)[0] for op in behind if kind_of(op) == "cumsum"]
