"""A record as a graph to walk: where a value comes from, what it depends on, who else reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from surgery.anatomy.dims import Dims, Sizes
from surgery.anatomy.paths import Paths
from surgery.anatomy.record import Call, Op, Record
from surgery.anatomy.roles.operators import (
    BLANKS,
    NORMS,
    PASSIVE,
    RESHAPES,
    STATISTICS,
    WEIGHTED,
    kind,
)


class Flow:
    """Walks over one record. Values, operators and calls are the numbers they have there.

    ``sizes`` can be varied to tell dims apart.
    """

    def __init__(self, record: Record, paths: Paths, sizes: Sizes | None = None):
        self.record = record
        self.paths = paths
        self.dims = Dims(record, sizes)
        self.ops = record.ops
        self.kinds = [kind(op.name) for op in record.ops]

    def op(self, value: int) -> Op | None:
        """The operator that made ``value``, or None for what the model was given or owns."""
        producer = self.record.producer[value]
        return self.ops[producer] if producer >= 0 else None

    def stripped(self, value: int, through: frozenset[str]) -> int:
        """``value`` as it was before the trailing operators of the kinds in ``through``."""
        while (producer := self.record.producer[value]) >= 0 and self.kinds[producer] in through:
            inputs = self.ops[producer].inputs
            if not inputs:
                break
            value = inputs[0]
        return value

    def same(self, value: int) -> int:
        """The value that was only reshaped, transposed, cast or dropped out to get this one."""
        return self.stripped(value, RESHAPES)

    def parameter(self, value: int) -> str | None:
        """The parameter that ``value`` is, up to its shape and slicing."""
        return self.record.parameters.get(self.stripped(value, PASSIVE))

    def owned(self, value: int) -> bool:
        """Whether ``value`` is a parameter or buffer, up to its shape."""
        base = self.stripped(value, PASSIVE)
        return base in self.record.parameters or base in self.record.buffers

    @cached_property
    def ancestors(self) -> list[int]:
        """For each operator a bit set of those it depends on; bits after those are arguments."""
        found: list[int] = []
        for op in self.ops:
            mask = 0
            for value in op.inputs:
                producer = self.record.producer[value]
                if producer >= 0:
                    mask |= found[producer] | 1 << producer
                else:
                    mask |= self.bit(value)
            found.append(mask)
        return found

    @cached_property
    def _argument_bits(self) -> dict[int, int]:
        return {v: 1 << len(self.ops) + i for i, v in enumerate(sorted(self.record.arguments))}

    def bit(self, value: int) -> int:
        """The bit that stands for ``value`` in sets of ancestors; 0 for the model's own tensors."""
        producer = self.record.producer[value]
        return 1 << producer if producer >= 0 else self._argument_bits.get(value, 0)

    def history(self, value: int) -> int:
        """The bits of ``value`` and of all it depends on."""
        producer = self.record.producer[value]
        return self.bit(value) | (self.ancestors[producer] if producer >= 0 else 0)

    def constant(self, value: int) -> bool:
        """Whether ``value`` is the same whatever the model is given."""
        return not self.history(value) >> len(self.ops)

    def depends(self, value: int, on: int) -> bool:
        """Whether ``value`` was computed from the value ``on`` (or is it)."""
        return bool(self.history(value) & self.bit(on))

    def backward(self, value: int, stop: Callable[[int, Op], bool]) -> Iterable[Op]:
        """The operators behind ``value``, nearest first; ``stop`` tells where not to go on."""
        seen: set[int] = set()
        waiting = [value]
        for value in waiting:
            op = self.op(value)
            if op is None or op.index in seen:
                continue
            seen.add(op.index)
            yield op
            if not stop(value, op):
                waiting += op.inputs

    def forward(self, value: int, stop: Callable[[Op], bool]) -> Iterable[Op]:
        """The operators that ``value`` reaches, nearest first."""
        seen: set[int] = set()
        waiting = [value]
        for value in waiting:
            for index in self.record.consumers[value]:
                if index in seen:
                    continue
                seen.add(index)
                op = self.ops[index]
                yield op
                if not stop(op):
                    waiting += op.outputs

    def main_input(self, call: Call) -> int | None:
        """The hidden states a module was given: its first floating argument of two dims or more."""
        for values in call.inputs.values():
            for _, value in values:
                if self.is_hidden(value):
                    return value
        return None

    def main_output(self, call: Call) -> int | None:
        """The hidden states a module returned."""
        for _, value in call.outputs:
            if self.is_hidden(value):
                return value
        return None

    def is_hidden(self, value: int) -> bool:
        return self.record.dtypes[value].is_floating_point and len(self.record.shapes[value]) >= 2

    def is_number(self, value: int) -> bool:
        """Whether gradients can pass ``value``: it is no index and no mask."""
        dtype = self.record.dtypes[value]
        return dtype.is_floating_point or dtype.is_complex

    @cached_property
    def felt(self) -> set[int]:
        """The operators whose result changes what the model returns by degrees, not by choice."""
        returned = [value for _, value in self.record.calls[0].outputs]
        found: set[int] = set()
        waiting = [value for value in returned if self.is_number(value)]
        for value in waiting:
            producer = self.record.producer[value]
            if producer >= 0 and producer not in found and self.kinds[producer] not in BLANKS:
                found.add(producer)
                waiting += [v for v in self.ops[producer].inputs if self.is_number(v)]
        return found or set(range(len(self.ops)))

    def lowest(self, ops: Iterable[Op]) -> Call:
        """The innermost call that ran all of ``ops``."""
        shared: list[int] | None = None
        for op in ops:
            stack = [call.number for call in self.record.stack(op.call)][::-1]
            if shared is None:
                shared = stack
                continue
            common = 0
            while common < min(len(shared), len(stack)) and shared[common] == stack[common]:
                common += 1
            del shared[common:]
        return self.record.calls[shared[-1] if shared else 0]

    @cached_property
    def norms(self) -> dict[int, Call]:
        """The calls of modules that only normalise, by the value they return."""
        found: dict[int, Call] = {}
        inside: set[int] = set()
        # Inner calls have higher numbers: those that hold a norm are no norms themselves.
        for call in reversed(self.record.calls):
            if call.number in inside or not self._normalises(call):
                continue
            inside.update(outer.number for outer in self.record.stack(call.number))
            output = self.main_output(call)
            if output is not None:
                found[output] = call
        return found

    def _normalises(self, call: Call) -> bool:
        if not 0 < call.last - call.first + 1 <= 40:
            return False
        kinds = set(self.kinds[call.first : call.last + 1])
        if not (kinds & NORMS or (kinds & STATISTICS and kinds & {"rsqrt", "sqrt", "pow", "std"})):
            return False
        source, result = self.main_input(call), self.main_output(call)
        if source is None or result is None or kinds & (WEIGHTED | {"embedding", "softmax"}):
            return False
        return self.record.shapes[source] == self.record.shapes[result]

    def before_norm(self, value: int) -> int | None:
        """What was normalised to get ``value``, or None if it is not the result of a norm."""
        call = self.norms.get(value)
        if call is not None:
            return self.main_input(call)
        op = self.op(value)
        if op is not None and self.kinds[op.index] in NORMS and op.inputs:
            return op.inputs[0]
        return None
