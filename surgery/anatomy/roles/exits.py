"""Where the states of all tokens leave a stack of layers, before any of them is picked or pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch.fx import Node

from surgery.anatomy.graph import (
    Key,
    ModuleCall,
    dtype_of,
    index_of,
    inputs_of,
    kind_of,
    outputs_of,
    shape_of,
)
from surgery.anatomy.roles.cores import RecordedCore
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layers import RepeatedLayer
from surgery.anatomy.roles.padding import pads
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.site import Port


@dataclass(frozen=True, slots=True)
class Stack:
    """One that embeds tokens: the ``lookup``, and who reads the ``ids``, as which argument.

    In a graph that has flattened the module that reads them, the graph itself is the reader, and
    ``path`` that of the module.
    """

    lookup: Node
    reader: ModuleCall
    argument: str
    ids: Node
    path: str


class Exits:
    """Finds them; ``layers`` are the layers of the model by path, ``cores`` its attentions."""

    def __init__(
        self,
        flow: Flow,
        ports: Ports,
        layers: Mapping[str, RepeatedLayer],
        cores: Sequence[RecordedCore],
    ):
        self.flow = flow
        self.recording = flow.recording
        self.ports = ports
        self.layers = layers
        self.cores = cores

    def runs(self, reader: ModuleCall, lookup: Node) -> bool:
        """Whether ``reader`` has layers that are given what ``lookup`` has found, or attends to it."""
        return bool(self._layers(reader, lookup) or self._attending(reader, lookup))

    def last(self, stack: Stack) -> Node:
        """What the last layer gives; where layers are no modules, the last attention."""
        layers = self._layers(stack.reader, stack.lookup)
        if layers:
            return cast("Node", self.flow.main_output(layers[-1]))
        return self._attending(stack.reader, stack.lookup)[-1].result

    def port(self, stack: Stack) -> Port | None:
        """Behind the last layer, or out of the reader where that is no place to drop tokens."""
        value = self.last(stack)
        layers = self._layers(stack.reader, stack.lookup)
        if layers:
            if self._whole(stack, value) and not self._counted(stack, value):
                for call in self._out_of(layers[-1], stack.reader):
                    port = self.ports.output(call, value)
                    if port is not None:
                        return port
        else:
            # XLM, FlauBERT: a list of attentions and one of feed-forwards, and no module for a layer.
            attending = self._attending(stack.reader, stack.lookup)
            whole = self.flow.lowest(op for core in attending for op in core.ops)
            for call in self._out_of(whole, stack.reader):
                given = self.returned(call, stack.ids, value)
                if given is not None and not self._counted(stack, given[1]):
                    return Port(call.path, "output", None, given[0])
        given = self.returned(stack.reader, stack.ids, value)
        return Port(stack.reader.path, "output", None, given[0]) if given else None

    def _whole(self, stack: Stack, value: Node) -> bool:
        """Whether ``value`` has a place for each token, and none but for padding behind them."""
        flow, dims = self.flow, self.flow.dims
        if dims.alike(value, stack.ids):
            return True
        return any(
            kind_of(op) in ("cat", "pad")
            and dims.alike(inputs_of(op)[0], stack.ids)
            and dims.alike(value, outputs_of(op)[0])
            and pads(flow, op)
            for op in flow.ops[stack.reader.first : stack.reader.last + 1]
        )

    def returned(self, call: ModuleCall, ids: Node, value: Node) -> tuple[Key, Node] | None:
        """What ``call`` makes of ``value`` and returns: states of all tokens."""
        for key, made in call.outputs:
            sequence = len(shape_of(made)) > 2 and self.flow.dims.alike(made, ids)
            if sequence and self.flow.depends(made, value):
                return key, made
        return None

    def streams(self, stack: Stack) -> tuple[tuple[Key, int], ...]:
        """What the reader returns beside: states of as many sequences, one behind the other.

        ProphetNet: the streams that predict tokens further on.
        """
        value = self.last(stack)
        batch, length = shape_of(stack.ids)
        return tuple(
            (key, shape_of(made)[1] // length)
            for key, made in stack.reader.outputs
            if len(shape_of(made)) == 3
            and shape_of(made)[0] == batch
            and shape_of(made)[1] > length
            and shape_of(made)[1] % length == 0
            and shape_of(made)[2] == shape_of(value)[-1]
            and shape_of(value)[1] == length + shape_of(made)[1]
            and self.flow.depends(made, value)
        )

    def latent(self, stack: Stack) -> bool:
        """Whether tokens are attended to, and no state of theirs comes out.

        Queries of the model's own make as many states of any number of tokens.
        """
        found, last = outputs_of(stack.lookup)[0], self.last(stack)
        within = [
            core
            for core in self.cores
            if stack.reader.first <= index_of(core.ops[-1]) <= stack.reader.last
        ]
        own = [core for core in within if not self.flow.depends(core.q, found)]
        # Perceiver: latents of the model's own attend to the tokens.
        if any(self._of_tokens(core.q, found, own) for core in within):
            return False
        keyed = [core for core in own if self._of_tokens(core.k, found, own)]
        met = any(self.flow.depends(last, core.result) for core in keyed)
        return met and not self._picks(stack, last)

    def _of_tokens(self, value: Node, found: Node, own: list[RecordedCore]) -> bool:
        """Whether ``value`` is made of the tokens ``found``, and not of states that attend to them."""
        through = any(self.flow.depends(value, core.result) for core in own)
        return self.flow.depends(value, found) and not through

    def _layers(self, reader: ModuleCall, lookup: Node) -> list[ModuleCall]:
        """The outermost layers in ``reader`` that are given what ``lookup`` has found."""
        found: dict[int, ModuleCall] = {}
        for call in self.recording.calls[reader.number + 1 :]:
            if call.path not in self.layers:
                continue
            around = [outer.number for outer in self.recording.stack(call.parent)]
            value = self.flow.main_output(call)
            if value is None or reader.number not in around or not found.keys().isdisjoint(around):
                continue
            if self.flow.depends(value, outputs_of(lookup)[0]):
                found[call.number] = call
        return list(found.values())

    def _attending(self, reader: ModuleCall, lookup: Node) -> list[RecordedCore]:
        """The attentions in ``reader`` over what ``lookup`` has found."""
        return [
            core
            for core in self.cores
            if reader.first <= index_of(core.ops[-1]) <= reader.last
            and self.flow.depends(core.result, outputs_of(lookup)[0])
        ]

    def _out_of(self, call: ModuleCall, reader: ModuleCall) -> list[ModuleCall]:
        """The calls around ``call``, itself included, that run once in ``reader``."""
        found: list[ModuleCall] = []
        for around in self.recording.stack(call.number):
            if self._once(around, reader):
                found.append(around)
            if around.number == reader.number:
                break
        return found

    def _once(self, call: ModuleCall, reader: ModuleCall) -> bool:
        """Whether the module runs once in ``reader``: layers may share their weights."""
        calls = self.recording.calls_of[call.path]
        return (
            sum(
                any(outer.number == reader.number for outer in self.recording.stack(other.number))
                for other in calls
            )
            == 1
        )

    def _counted(self, stack: Stack, value: Node) -> bool:
        """Whether the reader needs as many states as there were.

        It reshapes them by the number of tokens, picks by the ids, or has them meet other states
        of the same tokens.
        """
        flow = self.flow
        found = outputs_of(stack.lookup)[0]
        length = shape_of(value)[1]
        for op in self._behind(stack, value):
            shape = shape_of(inputs_of(op)[0])
            reshaped = kind_of(op) in ("view", "reshape", "expand") and len(shape) > 2
            lengthy = flow.dims.alike(inputs_of(op)[0], value, ((1, 1),))
            if reshaped and lengthy and length in _numbers(op.args):
                return True
            for other in inputs_of(op):
                beside = flow.is_hidden(other) and flow.dims.alike(other, value)
                if beside and flow.depends(other, found) and not flow.depends(other, value):
                    return True
        return self._picks(stack, value)

    def _picks(self, stack: Stack, value: Node) -> bool:
        """Whether the reader picks among what it makes of ``value`` by the ids."""
        for op in self._behind(stack, value):
            for other in inputs_of(op):
                picks = not dtype_of(other).is_floating_point
                by_ids = self.flow.depends(other, stack.ids)
                if picks and by_ids and not self.flow.depends(other, value):
                    return True
        return False

    def _behind(self, stack: Stack, value: Node) -> list[Node]:
        """The operators of the reader that ``value`` reaches."""
        reader = stack.reader

        def outside(op: Node) -> bool:
            return not reader.first <= index_of(op) <= reader.last

        return [op for op in self.flow.forward(value, outside) if not outside(op) and inputs_of(op)]


def _numbers(thing: Any) -> set[int]:
    """The plain integers among arguments; a size may come as a tuple."""
    if isinstance(thing, int):
        return {thing}
    if isinstance(thing, tuple | list):
        return set[int]().union(*map(_numbers, cast("tuple[Any, ...]", thing)))
    return set()
