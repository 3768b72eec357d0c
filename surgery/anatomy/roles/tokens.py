"""Stacks that embed a token sequence: who reads the ids, looks them up, and hands the states on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from surgery.anatomy.record import Call, Key, Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layers import Layer
from surgery.anatomy.roles.memory import memory_of
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.site import Memory, Port, Site, Tokens

_NAMES = {
    "embeds": ("inputs_embeds", "input_embeds", "decoder_inputs_embeds"),
    "mask": ("attention_mask", "mask", "decoder_attention_mask", "input_mask"),
    "positions": ("position_ids", "positions", "decoder_position_ids", "input_pos", "pos"),
    "types": ("token_type_ids", "token_types", "segment_ids"),
    "cache": ("past_key_values", "past_key_value", "kv_cache", "cache", "past"),
}
"""What the arguments beside the ids are called where no forward has shown them."""


class Stacks:
    """Finds where token sequences enter a model; ``layers`` are the paths of its layers."""

    def __init__(self, flow: Flow, ports: Ports, layers: Mapping[str, Layer]):
        self.flow = flow
        self.record = flow.record
        self.ports = ports
        self.layers = layers

    def sites(self) -> Iterator[Site]:
        """A site for each stack, in the order in which they run.

        Where nothing looks the very ids up, some of them may be replaced before: those of images.
        """
        yield from list(self._looked_up(self.flow.same)) or self._looked_up(self._unmasked)

    def _looked_up(self, origin: Callable[[int], int]) -> Iterator[Site]:
        """Sites with lookups of what ``origin`` tells to be the ids that a reader is given."""
        found: dict[str, tuple[int, Op, Call, str]] = {}
        for op, kind in zip(self.flow.ops, self.flow.kinds, strict=True):
            if kind != "embedding" or len(op.inputs) < 2:
                continue
            entered = self._reader(op, origin)
            if entered is None:
                continue
            reader, ids = entered
            rows = max(self.record.shapes[v][0] for v in op.inputs if self.flow.owned(v))
            if reader.path not in found or rows > found[reader.path][0]:
                found[reader.path] = rows, op, reader, ids
        readers = [reader for _, _, reader, _ in found.values()]
        for _, op, reader, ids in found.values():
            site = self._site(op, reader, ids, readers)
            if site is not None:
                yield site

    def _unmasked(self, value: int) -> int:
        """``value`` before some of its elements were replaced."""
        flow, shapes = self.flow, self.record.shapes
        while True:
            value = flow.same(value)
            op = flow.op(value)
            if op is None or flow.kinds[op.index] not in ("where", "masked_fill", "setitem"):
                return value
            alike = [
                v
                for v in op.inputs
                if shapes[v] == shapes[value] and self.record.dtypes[v] == self.record.dtypes[value]
            ]
            if len(alike) != 1:
                return value
            value = alike[0]

    def _reader(self, lookup: Op, origin: Callable[[int], int]) -> tuple[Call, str] | None:
        """The innermost call with both ``lookup`` and layers inside that is given its ids."""
        given = [v for v in lookup.inputs if not self.record.dtypes[v].is_floating_point]
        if not given or not any(self.flow.owned(v) for v in lookup.inputs):
            return None
        ids = origin(given[0])
        for call in self.record.stack(lookup.call):
            for name, values in call.inputs.items():
                for key, value in values:
                    whole = key is None and len(self.record.shapes[value]) == 2
                    if whole and self.flow.same(value) == ids and self._run_by(call, lookup):
                        return None if call.virtual else (call, name)
        return None

    def _run_by(self, reader: Call, lookup: Op) -> list[Call]:
        """The outermost layers in ``reader`` that are given what ``lookup`` has found."""
        found: list[Call] = []
        for call in self.record.calls[reader.number + 1 :]:
            around = [outer.number for outer in self.record.stack(call.parent)]
            if call.path not in self.layers or reader.number not in around:
                continue
            value = self.flow.main_output(call)
            if value is None or not self.flow.depends(value, lookup.outputs[0]):
                continue
            if not any(outer.number in around for outer in found):
                found.append(call)
        return found

    def _site(self, lookup: Op, reader: Call, ids: str, readers: list[Call]) -> Site | None:
        embedding = self.record.calls[lookup.call]
        module = self.flow.paths.modules.get(reader.path)
        owner = self.flow.paths.modules.get(embedding.path)
        embedded = self.ports.main_output(embedding)
        exit = self._exit(reader, ids, lookup)
        own = owner is not None and "weight" in owner._parameters
        if module is None or not own or embedded is None or exit is None:
            return None
        counts, padding = self._counting(reader, ids, lookup)
        names = self._names(reader, ids, module)
        tokens = Tokens(
            reader.path,
            embedding.path,
            exit,
            ids,
            **names,
            counts=counts,
            padding=padding,
            turned=self._turned(lookup, reader, ids),
            memory=self._memory(lookup, reader, ids, names["mask"], readers),
        )
        paths = self.flow.paths.of(module)
        return Site(reader.path, paths, "module", "tokens", None, embedded, exit, tokens=tokens)

    def _turned(self, lookup: Op, reader: Call, ids: str) -> bool:
        """Whether tokens are looked up with the length first."""
        shapes = self.record.shapes
        given, looked_up = shapes[reader.inputs[ids][0][1]], shapes[lookup.outputs[0]][:2]
        return looked_up != given and looked_up == given[::-1]

    def _exit(self, reader: Call, ids: str, lookup: Op) -> Port | None:
        """Behind the last layer, or out of the reader where that is no place to drop tokens."""
        last = self._run_by(reader, lookup)[-1]
        value = cast("int", self.flow.main_output(last))
        given = reader.inputs[ids][0][1]
        shapes = self.record.shapes
        by_tokens = shapes[value][:2] == shapes[given]
        if by_tokens and not self._counted(reader, value, given):
            for call in self.record.stack(last.number):
                if self._once(call, reader):
                    port = self.ports.output(call, value)
                    if port is not None:
                        return port
                if call.number == reader.number:
                    break
        returned = self._returned(reader, given, value)
        return Port(reader.path, "output", None, returned[0]) if returned else None

    def _returned(self, reader: Call, ids: int, value: int) -> tuple[Key, int] | None:
        """What ``reader`` makes of ``value`` and returns: states of all tokens."""
        shapes = self.record.shapes
        for key, made in reader.outputs:
            sequence = len(shapes[made]) > 2 and shapes[made][:2] == shapes[ids]
            if sequence and self.flow.depends(made, value):
                return key, made
        return None

    def _memory(
        self, lookup: Op, reader: Call, ids: str, mask: str | None, readers: list[Call]
    ) -> Memory | None:
        """Who attends to the states, if a decoder does."""
        last = self.flow.main_output(self._run_by(reader, lookup)[-1])
        assert last is not None
        returned = self._returned(reader, reader.inputs[ids][0][1], last)
        if returned is None:
            return None
        masks = reader.inputs.get(mask or "", [])
        value = masks[0][1] if masks else None
        return memory_of(self.flow, reader, last, returned, value, readers)

    def _once(self, call: Call, reader: Call) -> bool:
        """Whether the module runs once in ``reader``: layers may share their weights."""
        calls = self.record.calls_of[call.path]
        return (
            sum(
                any(outer.number == reader.number for outer in self.record.stack(other.number))
                for other in calls
            )
            == 1
        )

    def _counted(self, reader: Call, value: int, ids: int) -> bool:
        """Whether ``reader`` reshapes the states by the number of tokens or picks by the ids."""
        flow, shapes = self.flow, self.record.shapes
        length = shapes[ids][1]

        def outside(op: Op) -> bool:
            return not reader.first <= op.index <= reader.last

        for op in flow.forward(value, outside):
            if outside(op):
                continue
            shape = shapes[op.inputs[0]]
            reshaped = flow.kinds[op.index] in ("view", "reshape", "expand") and len(shape) > 2
            if reshaped and shape[1:2] == (length,) and length in _numbers(op.args):
                return True
            for other in op.inputs:
                picks = not self.record.dtypes[other].is_floating_point
                if picks and flow.depends(other, ids) and not flow.depends(other, value):
                    return True
        return False

    def _names(self, reader: Call, ids: str, module: Any) -> dict[str, Any]:
        """The other arguments by what they are for: those given, else as they are mostly called."""
        accepted = [name for name in inspect.signature(module.forward).parameters if name != ids]
        found = {
            use: next((name for name in names if name in accepted), None)
            for use, names in _NAMES.items()
        }
        shape = self.record.shapes[reader.inputs[ids][0][1]]
        for name, values in reader.inputs.items():
            value = values[0][1]
            alike = self.record.shapes[value] == shape and values[0][0] is None
            known = name == ids or name in found.values() or name not in accepted
            if known or not alike or self.record.dtypes[value].is_floating_point:
                continue
            use = self._use(reader, value)
            # In a padding mask ones are what is not there.
            if use is not None and found[use] is None and "padding" not in name:
                found[use] = name
        return found

    def _use(self, reader: Call, value: int) -> str | None:
        """A table is looked up by types or positions; what reaches a softmax is a mask."""
        kinds = self.flow.kinds
        for index in self.record.consumers[value]:
            if kinds[index] == "embedding" and reader.first <= index <= reader.last:
                return "types"
        attends = {"softmax", "scaled_dot_product_attention"}
        reached = self.flow.forward(value, lambda op: kinds[op.index] in attends)
        return "mask" if any(kinds[op.index] in attends for op in reached) else None

    def _counting(self, reader: Call, ids: str, lookup: Op) -> tuple[Any, int | None]:
        """How positions are told that are not given, from what they are looked up by."""
        given = reader.inputs[ids][0][1]
        found: tuple[Any, int | None] = ("places", None)
        for op in self.flow.ops[reader.first : reader.last + 1]:
            if self.flow.kinds[op.index] != "embedding" or op.index == lookup.index:
                continue
            sums = [total for value in op.inputs for total in self._sums(value)]
            if not sums:
                continue
            if not any(self.flow.depends(total, given) for total in sums):
                return "mask", None
            # Token types may be picked by positions: only the table of these has a padding row.
            found = "ids", found[1] if found[1] is not None else op.kwargs.get("padding_idx")
        return found

    def _sums(self, value: int) -> list[int]:
        """The running sums behind an integer ``value``."""
        if self.record.dtypes[value].is_floating_point:
            return []
        behind = self.flow.backward(value, lambda _value, _op: False)
        return [op.outputs[0] for op in behind if self.flow.kinds[op.index] == "cumsum"]


def _numbers(thing: Any) -> set[int]:
    """The plain integers among arguments; a size may come as a tuple."""
    if isinstance(thing, int):
        return {thing}
    if isinstance(thing, tuple):
        return set[int]().union(*map(_numbers, cast("tuple[Any, ...]", thing)))
    return set()
