"""The record made ready for reading roles: norms, activations and linears are one operator each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from surgery.anatomy.operators import CONVOLUTIONS, NORMS, PRODUCTS, SAME, Kind, kind_of, plain
from surgery.anatomy.paths import Paths
from surgery.anatomy.record import Call, Key, Op, Record, Value
from surgery.anatomy.site import Port


@dataclass(frozen=True, slots=True)
class Linear:
    """A product of an activation with a parameter.

    ``module`` is the module whose output it is, if there is one; ``key`` where in that output;
    ``parameter`` the weight's name, unless it is computed.
    """

    op: int
    input: int
    output: int
    parameter: str | None
    module: str | None
    key: Key
    call: int

    @property
    def path(self) -> str:
        return self.module if self.module is not None else self.parameter or ""


class Graph:
    """Operators by kind, with their producers and consumers."""

    def __init__(self, record: Record, paths: Paths):
        self.record = record
        self.paths = paths
        self.dynamic = _dynamic(record)
        self.weights: dict[int, str] = {}
        self.leaves = _leaves(record)
        self.ops: list[Op] = []
        self.kinds: list[Kind] = []
        self.linears: dict[int, Linear] = {}
        self.producer = [-1] * len(record.shapes)
        self._weigh()
        self._collect()
        self.consumers: list[list[int]] = [[] for _ in record.shapes]
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                self.consumers[value].append(op.index)
        self._own()

    def maker(self, value: int) -> Op | None:
        index = self.producer[value]
        return self.ops[index] if index >= 0 else None

    def same(self, value: int) -> int:
        """The value that ``value`` is a mere cast or copy of."""
        while (op := self.maker(value)) is not None and op.inputs:
            unchanged = plain(op.name) in SAME or (
                self.kinds[op.index] == "shape"
                and plain(op.name) in ("view", "reshape", "expand")
                and self.record.shapes[op.inputs[0]] == self.record.shapes[value]
            )
            if not unchanged:
                break
            value = op.inputs[0]
        return value

    def unshaped(self, value: int) -> int:
        """The value that ``value`` is a reshaped, transposed or sliced view of."""
        while (op := self.maker(value)) is not None and self.kinds[op.index] == "shape":
            value = op.inputs[0]
        return value

    @cached_property
    def borders(self) -> tuple[dict[int, list[Port]], dict[int, list[Port]]]:
        """For each value where it goes into, and where it comes out of, a module."""
        inputs: dict[int, list[Port]] = {}
        outputs: dict[int, list[Port]] = {}
        for call in self.record.calls:
            if call.virtual:
                continue
            for name, values in call.inputs.items():
                for key, value in values:
                    port = Port(call.path, "input", name, key)
                    inputs.setdefault(self.same(value), []).append(port)
            for key, value in call.outputs:
                port = Port(call.path, "output", None, key)
                outputs.setdefault(self.same(value), []).append(port)
        return inputs, outputs

    def stack(self, op: int) -> list[int]:
        """The calls around an operator, outermost first."""
        return [call.number for call in self.record.stack(self.ops[op].call)][::-1]

    def common(self, ops: list[int]) -> list[int]:
        """The calls around all of ``ops``, outermost first."""
        stacks = [self.stack(op) for op in ops]
        shared: list[int] = []
        for calls in zip(*stacks, strict=False):
            if len(set(calls)) > 1:
                break
            shared.append(calls[0])
        return shared

    def _weigh(self) -> None:
        """Which values are a parameter, seen through reshaping, transposing and indexing."""
        self.weights.update(self.record.parameters)
        for op in self.record.ops:
            if op.inputs and op.inputs[0] in self.weights and kind_of(op.name) == "shape":
                self.weights.update(dict.fromkeys(op.outputs, self.weights[op.inputs[0]]))

    def _collect(self) -> None:
        whole = {call.first: call for call in self.leaves if call.last >= call.first}
        raw = self.record.ops
        position = 0
        while position < len(raw):
            call = whole.get(position)
            merged = call and self._merged(call, raw[call.first : call.last + 1])
            if call and merged:
                self._add(*merged)
                position = call.last + 1
                continue
            op = raw[position]
            kind = self._kind(op)
            self._add(op, kind, self._operands(op) if kind == "linear" else None)
            position += 1

    def _add(self, op: Op, kind: Kind, operands: tuple[int, int | None] | None) -> None:
        index = len(self.ops)
        self.ops.append(replace(op, index=index))
        self.kinds.append(kind)
        for value in op.outputs:
            self.producer[value] = index
        if operands is not None:
            read, weight = operands
            name = self.weights.get(weight) if weight is not None else None
            output = op.outputs[0]
            self.linears[index] = Linear(index, read, output, name, None, None, op.call)

    def _kind(self, op: Op) -> Kind:
        name = plain(op.name)
        if name in CONVOLUTIONS:
            operands = self._operands(op)
            weight = operands and operands[1]
            shape = self.record.shapes[weight] if weight is not None else ()
            return "linear" if len(shape) > 2 and set(shape[2:]) == {1} else "conv"
        kind = kind_of(name)
        if kind == "product" and self._operands(op) is not None:
            return "linear"
        if kind == "other" and len(op.inputs) == 1 and name.startswith("clamp"):
            return "activation"
        return kind

    def _operands(self, op: Op) -> tuple[int, int | None] | None:
        """The activation and the weight of a product with a parameter."""
        name = plain(op.name)
        if name == "linear" or name in CONVOLUTIONS:
            found = [*op.args, op.kwargs.get("input"), op.kwargs.get("weight")]
            values = [item.number for item in found if isinstance(item, Value)]
            return (values[0], values[1]) if len(values) > 1 else None
        if name not in PRODUCTS or len(op.inputs) < 2:
            return None
        left, right = op.inputs[1:3] if name in ("addmm", "baddbmm") else op.inputs[:2]
        if (left in self.weights) == (right in self.weights):
            return None
        return (left, right) if right in self.weights else (right, left)

    def _merged(
        self, call: Call, ops: list[Op]
    ) -> tuple[Op, Kind, tuple[int, int | None] | None] | None:
        """A leaf module as one operator, if it is a norm, an activation or a linear."""
        floats = [value for _, value in call.outputs]
        given = [value for values in call.inputs.values() for _, value in values]
        if len(floats) != 1 or not given or self.producer_in(given, call):
            return None
        if not any(floats[0] in op.outputs for op in ops):
            return None
        names = {plain(op.name) for op in ops}
        kinds = [self._kind(op) for op in ops]
        shapes = self.record.shapes
        same = shapes[given[0]] == shapes[floats[0]]
        whole = Op(0, "", (), {}, tuple(given), (floats[0],), call.number)
        if "core" in kinds or "embedding" in kinds:
            return None
        if "linear" in kinds:
            operands = self._linear_module(call, ops, kinds)
            return (replace(whole, name="linear"), "linear", operands) if operands else None
        if "conv" in kinds or "product" in kinds or "softmax" in kinds:
            return self._opaque(call, whole)
        if "batch_norm" in kinds:
            return replace(whole, name="batch_norm"), "batch_norm", None
        if same and _is_norm(names):
            return replace(whole, name="norm"), "norm", None
        if same and "activation" in kinds and len(given) == 1 and len(ops) < 16:
            return replace(whole, name="activation"), "activation", None
        return self._opaque(call, whole)

    def producer_in(self, values: list[int], call: Call) -> bool:
        made = self.record.producer
        return any(call.first <= made[value] <= call.last for value in values)

    def _opaque(
        self, call: Call, whole: Op
    ) -> tuple[Op, Kind, tuple[int, int | None] | None] | None:
        """A linear whose kernel can't be looked into (a quantised one) says so by its features."""
        module = self.paths.modules[call.path]
        sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
        shapes = self.record.shapes
        ends = shapes[whole.inputs[0]][-1:], shapes[whole.outputs[0]][-1:]
        if isinstance(sizes[0], int) and ends == ((sizes[0],), (sizes[1],)):
            return replace(whole, name="linear"), "linear", (whole.inputs[0], None)
        return None

    def _linear_module(
        self, call: Call, ops: list[Op], kinds: list[Kind]
    ) -> tuple[int, int | None] | None:
        """The operands of a module that is one linear, whatever small ones grow inside it."""
        inner = [op for op, kind in zip(ops, kinds, strict=True) if kind == "linear"]
        operands = [found for op in inner if (found := self._operands(op))]
        weights = [self.weights.get(w, "") if w is not None else "" for _, w in operands]
        owners = [self._owners(name) for name in weights]
        own = [i for i, paths in enumerate(owners) if call.path in paths]
        if len(own) != 1:
            return None
        others = [paths for i, paths in enumerate(owners) if i != own[0]]
        prefix = f"{call.path}." if call.path else ""
        if not all(any(path.startswith(prefix) for path in paths) for paths in others):
            return None
        if not others and any(k in ("activation", "choice", "mixing", "softmax") for k in kinds):
            return None
        read = next(iter(call.inputs.values()))[0][1]
        return read, operands[own[0]][1]

    def _owners(self, parameter: str) -> set[str]:
        if parameter not in self.paths.parameters:
            return set()
        names = self.paths.of(self.paths.parameters[parameter])
        return {name.rpartition(".")[0] for name in names}

    def _own(self) -> None:
        """Give each linear the module whose output it is, where that is one."""
        shared = Counter(call for linear in self.linears.values() for call in self.stack(linear.op))
        for index, linear in self.linears.items():
            call = self.record.calls[linear.call]
            owns = call.path in self._owners(linear.parameter or "") or linear.parameter is None
            if call.virtual or not owns or shared[call.number] > 1:
                continue
            for key, value in call.outputs:
                if self.unshaped(value) == self.unshaped(linear.output):
                    self.linears[index] = replace(linear, module=call.path, key=key)
                    break


def _is_norm(names: set[str]) -> bool:
    scaled = "rsqrt" in names or ("sqrt" in names and bool(names & {"mean", "var", "std"}))
    return bool(names & NORMS) or scaled or bool(names & {"norm", "vector_norm", "normalize"})


def _leaves(record: Record) -> list[Call]:
    parents = {call.parent for call in record.calls}
    return [call for call in record.calls if call.number not in parents]


def _dynamic(record: Record) -> list[bool]:
    """Which values depend on what the model was given, and not on its parameters alone."""
    found = [False] * len(record.shapes)
    for value in record.arguments:
        found[value] = True
    for op in record.ops:
        if any(found[value] for value in op.inputs):
            for value in op.outputs:
                found[value] = True
    return found
