"""Where the states of all tokens leave a stack of layers, before any of them is picked or pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from surgery.anatomy.record import Call, Key, Op
from surgery.anatomy.roles.cores import Core
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layers import Layer
from surgery.anatomy.roles.padding import pads
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.site import Port


@dataclass(frozen=True, slots=True)
class Stack:
    """One that embeds tokens: the ``lookup``, and who reads the ``ids``, as which argument.

    In a graph that has flattened the module that reads them, the graph itself is the reader, and
    ``path`` that of the module.
    """

    lookup: Op
    reader: Call
    argument: str
    ids: int
    path: str


class Exits:
    """Finds them; ``layers`` are the layers of the model by path, ``cores`` its attentions."""

    def __init__(
        self, flow: Flow, ports: Ports, layers: Mapping[str, Layer], cores: Sequence[Core]
    ):
        self.flow = flow
        self.record = flow.record
        self.ports = ports
        self.layers = layers
        self.cores = cores

    def runs(self, reader: Call, lookup: Op) -> bool:
        """Whether ``reader`` has layers that are given what ``lookup`` has found, or attends to it."""
        return bool(self._layers(reader, lookup) or self._attending(reader, lookup))

    def last(self, stack: Stack) -> int:
        """What the last layer gives; where layers are no modules, the last attention."""
        layers = self._layers(stack.reader, stack.lookup)
        if layers:
            return cast("int", self.flow.main_output(layers[-1]))
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
            attending = self._attending(stack.reader, stack.lookup)
            whole = self.flow.lowest(op for core in attending for op in core.ops)
            for call in self._out_of(whole, stack.reader):
                given = self.returned(call, stack.ids, value)
                if given is not None and not self._counted(stack, given[1]):
                    return Port(call.path, "output", None, given[0])
        given = self.returned(stack.reader, stack.ids, value)
        return Port(stack.reader.path, "output", None, given[0]) if given else None

    def _whole(self, stack: Stack, value: int) -> bool:
        """Whether ``value`` has a place for each token, and none but for padding behind them."""
        flow, dims = self.flow, self.flow.dims
        if dims.alike(value, stack.ids):
            return True
        return any(
            flow.kinds[op.index] in ("cat", "pad")
            and dims.alike(op.inputs[0], stack.ids)
            and dims.alike(value, op.outputs[0])
            and pads(flow, op)
            for op in flow.ops[stack.reader.first : stack.reader.last + 1]
        )

    def returned(self, call: Call, ids: int, value: int) -> tuple[Key, int] | None:
        """What ``call`` makes of ``value`` and returns: states of all tokens."""
        shapes = self.record.shapes
        for key, made in call.outputs:
            sequence = len(shapes[made]) > 2 and self.flow.dims.alike(made, ids)
            if sequence and self.flow.depends(made, value):
                return key, made
        return None

    def streams(self, stack: Stack) -> tuple[tuple[Key, int], ...]:
        """What the reader returns beside: states of as many sequences, one behind the other."""
        value, shapes = self.last(stack), self.record.shapes
        batch, length = shapes[stack.ids]
        return tuple(
            (key, shapes[made][1] // length)
            for key, made in stack.reader.outputs
            if len(shapes[made]) == 3
            and shapes[made][0] == batch
            and shapes[made][1] > length
            and shapes[made][1] % length == 0
            and shapes[made][2] == shapes[value][-1]
            and shapes[value][1] == length + shapes[made][1]
            and self.flow.depends(made, value)
        )

    def latent(self, stack: Stack) -> bool:
        """Whether tokens are attended to, and no state of theirs comes out.

        Queries of the model's own make as many states of any number of tokens.
        """
        found, last = stack.lookup.outputs[0], self.last(stack)
        within = [
            core
            for core in self.cores
            if stack.reader.first <= core.ops[-1].index <= stack.reader.last
        ]
        own = [core for core in within if not self.flow.depends(core.q, found)]
        if any(self._of_tokens(core.q, found, own) for core in within):
            return False
        keyed = [core for core in own if self._of_tokens(core.k, found, own)]
        met = any(self.flow.depends(last, core.result) for core in keyed)
        return met and not self._picks(stack, last)

    def _of_tokens(self, value: int, found: int, own: list[Core]) -> bool:
        """Whether ``value`` is made of the tokens ``found``, and not of states that attend to them."""
        through = any(self.flow.depends(value, core.result) for core in own)
        return self.flow.depends(value, found) and not through

    def _layers(self, reader: Call, lookup: Op) -> list[Call]:
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

    def _attending(self, reader: Call, lookup: Op) -> list[Core]:
        """The attentions in ``reader`` over what ``lookup`` has found."""
        return [
            core
            for core in self.cores
            if reader.first <= core.ops[-1].index <= reader.last
            and self.flow.depends(core.result, lookup.outputs[0])
        ]

    def _out_of(self, call: Call, reader: Call) -> list[Call]:
        """The calls around ``call``, itself included, that run once in ``reader``."""
        found: list[Call] = []
        for around in self.record.stack(call.number):
            if self._once(around, reader):
                found.append(around)
            if around.number == reader.number:
                break
        return found

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

    def _counted(self, stack: Stack, value: int) -> bool:
        """Whether the reader needs as many states as there were.

        It reshapes them by the number of tokens, picks by the ids, or has them meet other states
        of the same tokens.
        """
        flow, shapes = self.flow, self.record.shapes
        found = stack.lookup.outputs[0]
        length = shapes[value][1]
        for op in self._behind(stack, value):
            shape = shapes[op.inputs[0]]
            reshaped = flow.kinds[op.index] in ("view", "reshape", "expand") and len(shape) > 2
            lengthy = flow.dims.alike(op.inputs[0], value, ((1, 1),))
            if reshaped and lengthy and length in _numbers(op.args):
                return True
            for other in op.inputs:
                beside = flow.is_hidden(other) and flow.dims.alike(other, value)
                if beside and flow.depends(other, found) and not flow.depends(other, value):
                    return True
        return self._picks(stack, value)

    def _picks(self, stack: Stack, value: int) -> bool:
        """Whether the reader picks among what it makes of ``value`` by the ids."""
        for op in self._behind(stack, value):
            for other in op.inputs:
                picks = not self.record.dtypes[other].is_floating_point
                by_ids = self.flow.depends(other, stack.ids)
                if picks and by_ids and not self.flow.depends(other, value):
                    return True
        return False

    def _behind(self, stack: Stack, value: int) -> list[Op]:
        """The operators of the reader that ``value`` reaches."""
        reader = stack.reader

        def outside(op: Op) -> bool:
            return not reader.first <= op.index <= reader.last

        return [op for op in self.flow.forward(value, outside) if not outside(op) and op.inputs]


def _numbers(thing: Any) -> set[int]:
    """The plain integers among arguments; a size may come as a tuple."""
    if isinstance(thing, int):
        return {thing}
    if isinstance(thing, tuple):
        return set[int]().union(*map(_numbers, cast("tuple[Any, ...]", thing)))
    return set()
