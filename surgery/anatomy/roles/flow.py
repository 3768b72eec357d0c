"""Walks over a recording: where a value comes from, what it depends on, who else reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from torch.fx import Node

from surgery.anatomy.dims import Dims, Sizes
from surgery.anatomy.graph import (
    ModuleCall,
    Recording,
    before_of,
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
from surgery.anatomy.paths import Paths
from surgery.anatomy.roles.operators import (
    BLANKS,
    NORMS,
    PASSIVE,
    RESHAPES,
    STATISTICS,
    WEIGHTED,
)


class Flow:
    """Walks over one recording; ``sizes`` can be varied to tell dims apart."""

    def __init__(self, recording: Recording, paths: Paths, sizes: Sizes | None = None):
        self.recording = recording
        self.paths = paths
        self.dims = Dims(recording, sizes)
        self.ops = recording.ops

    def stripped(self, value: Node, through: frozenset[str]) -> Node:
        """``value`` as it was before the trailing operators of the kinds in ``through``."""
        while (op := maker_of(value)) is not None:
            kind, inputs = kind_of(op), inputs_of(op)
            if kind not in through and (kind != "expand" or not _expands_nothing(op)):
                break
            if not inputs:
                break
            value = inputs[0]
        return value

    def same(self, value: Node) -> Node:
        """The value that was only reshaped, transposed, cast or dropped out to get this one."""
        return self.stripped(value, RESHAPES)

    def parameter(self, value: Node) -> str | None:
        """The parameter that ``value`` is, up to its shape and slicing."""
        return self.recording.parameters.get(self.stripped(value, PASSIVE))

    def owned(self, value: Node) -> bool:
        """Whether ``value`` is a parameter or buffer, up to its shape."""
        base = self.stripped(value, PASSIVE)
        return base in self.recording.parameters or base in self.recording.buffers

    @cached_property
    def histories(self) -> list[int]:
        """For each operator a bit set of itself and all it depends on; bits after those are arguments."""
        found: list[int] = []
        for op in self.ops:
            mask = 1 << index_of(op)
            for value in inputs_of(op):
                mask |= self._history(value, found)
            found.append(mask)
        return found

    def _history(self, value: Node, histories: list[int]) -> int:
        op, before = maker_of(value), before_of(value)
        past = self._argument_bits.get(value, 0) if op is None else histories[index_of(op)]
        return past if before is None else past | self._history(before, histories)

    @cached_property
    def _argument_bits(self) -> dict[Node, int]:
        given = sorted(self.recording.arguments)
        return {value: 1 << len(self.ops) + i for i, value in enumerate(given)}

    def bit(self, value: Node) -> int:
        """The bit that stands for ``value`` in sets of ancestors; 0 for the model's own tensors."""
        op = maker_of(value)
        return self._argument_bits.get(value, 0) if op is None else 1 << index_of(op)

    def history(self, value: Node) -> int:
        """The bits of ``value`` and of all it depends on."""
        return self._history(value, self.histories)

    def constant(self, value: Node) -> bool:
        """Whether ``value`` is the same whatever the model is given."""
        return not self.history(value) >> len(self.ops)

    def depends(self, value: Node, on: Node) -> bool:
        """Whether ``value`` was computed from the value ``on`` (or is it)."""
        return bool(self.history(value) & self.bit(on))

    def backward(self, value: Node, stop: Callable[[Node, Node], bool]) -> Iterable[Node]:
        """The operators behind ``value``, nearest first; ``stop`` tells where not to go on."""
        seen: set[Node] = set()
        waiting = [value]
        for value in waiting:
            op, before = maker_of(value), before_of(value)
            if before is not None:
                waiting.append(before)
            if op is None or op in seen:
                continue
            seen.add(op)
            yield op
            if not stop(value, op):
                waiting += inputs_of(op)

    def forward(self, value: Node, stop: Callable[[Node], bool]) -> Iterable[Node]:
        """The operators that ``value`` reaches, nearest first."""
        seen: set[Node] = set()
        waiting = [value]
        for value in waiting:
            for op in readers(value):
                if op in seen:
                    continue
                seen.add(op)
                yield op
                if not stop(op):
                    waiting += outputs_of(op)

    def main_input(self, call: ModuleCall) -> Node | None:
        """The hidden states a module was given: its first floating argument of two dims or more."""
        for values in call.inputs.values():
            for _, value in values:
                if self.is_hidden(value):
                    return value
        return None

    def main_output(self, call: ModuleCall) -> Node | None:
        """The hidden states a module returned."""
        for _, value in call.outputs:
            if self.is_hidden(value):
                return value
        return None

    def is_hidden(self, value: Node) -> bool:
        return dtype_of(value).is_floating_point and len(shape_of(value)) >= 2

    def is_number(self, value: Node) -> bool:
        """Whether gradients can pass ``value``: it is no index and no mask."""
        dtype = dtype_of(value)
        return dtype.is_floating_point or dtype.is_complex

    @cached_property
    def felt(self) -> set[Node]:
        """The operators whose result changes what the model returns by degrees, not by choice."""
        returned = [value for _, value in self.recording.calls[0].outputs]
        found: set[Node] = set()
        waiting = [value for value in returned if self.is_number(value)]
        for value in waiting:
            op, before = maker_of(value), before_of(value)
            if before is not None:
                waiting.append(before)
            if op is not None and op not in found and kind_of(op) not in BLANKS:
                found.add(op)
                waiting += [v for v in inputs_of(op) if self.is_number(v)]
        return found or set(self.ops)

    def lowest(self, ops: Iterable[Node]) -> ModuleCall:
        """The innermost call that ran all of ``ops``."""
        shared: list[int] | None = None
        for op in ops:
            stack = [call.number for call in self.recording.stack(call_of(op))][::-1]
            if shared is None:
                shared = stack
                continue
            common = 0
            while common < min(len(shared), len(stack)) and shared[common] == stack[common]:
                common += 1
            del shared[common:]
        return self.recording.calls[shared[-1] if shared else 0]

    @cached_property
    def norms(self) -> dict[Node, ModuleCall]:
        """The calls of modules that only normalise, by the value they return."""
        found: dict[Node, ModuleCall] = {}
        inside: set[int] = set()
        # Inner calls have higher numbers: those that hold a norm are no norms themselves.
        for call in reversed(self.recording.calls):
            if call.number in inside or not self._normalises(call):
                continue
            inside.update(outer.number for outer in self.recording.stack(call.number))
            output = self.main_output(call)
            if output is not None:
                found[output] = call
        return found

    def _normalises(self, call: ModuleCall) -> bool:
        if not 0 < call.last - call.first + 1 <= 40:
            return False
        kinds = set(map(kind_of, self.ops[call.first : call.last + 1]))
        if not (kinds & NORMS or (kinds & STATISTICS and kinds & {"rsqrt", "sqrt", "pow", "std"})):
            return False
        source, result = self.main_input(call), self.main_output(call)
        if source is None or result is None or kinds & (WEIGHTED | {"embedding", "softmax"}):
            return False
        return shape_of(source) == shape_of(result)

    def before_norm(self, value: Node) -> Node | None:
        """What was normalised to get ``value``, or None if it is not the result of a norm."""
        call = self.norms.get(value)
        if call is not None:
            return self.main_input(call)
        op = maker_of(value)
        if op is not None and kind_of(op) in NORMS and inputs_of(op):
            return inputs_of(op)[0]
        return None


def _expands_nothing(op: Node) -> bool:
    """Whether an expansion gives the shape that there was, as in decomposed products."""
    return shape_of(inputs_of(op)[0]) == shape_of(outputs_of(op)[0])
