"""The places where a weight of the model is multiplied with activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, cast

from torch.fx import Node

from surgery.anatomy.graph import (
    ModuleCall,
    call_of,
    dtype_of,
    inputs_of,
    kind_of,
    maker_of,
    outputs_of,
    shape_of,
)
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.operators import ARITHMETIC, CONVOLUTIONS, PRODUCTS, RESHAPES, WEIGHTED


@dataclass(frozen=True, eq=False)
class RecordedLinear:
    """One product with a weight.

    ``path`` is the module that does this and nothing else, ``call`` its run; both are None where
    another module reads the weight. ``source`` and ``result`` are the values in and out. It is
    ``pointwise`` unless it is a convolution over several positions; one of these is ``depthwise``
    if it mixes positions more than features, each group of these apart.
    """

    op: Node
    path: str | None
    call: ModuleCall | None
    weight: str
    source: Node
    result: Node
    pointwise: bool
    depthwise: bool


class RecordedLinears(dict[Node, RecordedLinear]):
    """The linears of a recording by their operator."""

    @cached_property
    def by_result(self) -> dict[Node, RecordedLinear]:
        """The same by what they give."""
        return {linear.result: linear for linear in self.values()}


def linears(flow: Flow) -> RecordedLinears:
    """The linears of a recording."""
    found = RecordedLinears()
    for op in flow.ops:
        kind = kind_of(op)
        if kind in WEIGHTED and (linear := _linear(flow, op, kind)) is not None:
            found[op] = linear
    return found


def _linear(flow: Flow, op: Node, kind: str) -> RecordedLinear | None:
    operands = operands_of(op, kind)
    weighed = _weight(flow, operands, kind)
    if weighed is None or not outputs_of(op):
        return None
    weight, source = weighed
    result = outputs_of(op)[0]
    if not dtype_of(result).is_floating_point or flow.owned(source):
        return None
    pointwise, depthwise = True, False
    if kind in CONVOLUTIONS:
        shape = shape_of(operands[1])
        pointwise = all(size == 1 for size in shape[2:])
        depthwise = not pointwise and shape[1] < shape_of(source)[-len(shape) + 1]
    call = None if _grouped(flow, operands, weight) else _alone(flow, op, weight, source, result)
    if call is None:
        return RecordedLinear(op, None, None, weight, source, result, pointwise, depthwise)
    given, made = flow.main_input(call), flow.main_output(call)
    assert given is not None
    assert made is not None
    return RecordedLinear(op, call.path, call, weight, given, made, pointwise, depthwise)


def operands_of(op: Node, kind: str) -> list[Node]:
    """The values that are multiplied, in order."""
    given = list(_values((op.args, op.kwargs)))
    if kind in ("addmm", "baddbmm", "addbmm"):
        return given[1:3]
    return given[:2]


def _values(thing: Any) -> Iterable[Node]:
    if isinstance(thing, Node):
        yield thing
    elif isinstance(thing, dict):
        yield from _values(tuple(cast("dict[str, Any]", thing).values()))
    elif isinstance(thing, tuple | list):
        for item in cast("tuple[Any, ...]", thing):
            yield from _values(item)


def _weight(flow: Flow, operands: list[Node], kind: str) -> tuple[str, Node] | None:
    """The name of the weight, and the other operand."""
    if len(operands) < 2:
        return None
    first, second = operands
    name = flow.parameter(second)
    if name is not None:
        return name, first
    if kind in PRODUCTS:
        name = flow.parameter(first)
        return (name, second) if name is not None else None
    # Dequantised and reparametrised weights are computed from what the model owns.
    owned = _derived(flow, second)
    return (owned, first) if owned is not None else None


def _grouped(flow: Flow, operands: list[Node], weight: str) -> bool:
    """Whether the blocks of one matrix are multiplied each with inputs of its own."""
    parameter = flow.paths.parameters.get(weight)
    shapes = [shape_of(v) for v in operands if flow.parameter(v) == weight]
    if parameter is None or parameter.dim() != 2:
        return False
    # One that is expanded is the same for all of the batch (products after decompositions).
    return any(len(s) > 2 and prod(s) == parameter.numel() for s in shapes)


def _derived(flow: Flow, value: Node) -> str | None:
    recording = flow.recording
    owned = {**recording.parameters, **recording.buffers}
    name: str | None = None
    for op in flow.backward(value, lambda _value, _op: False):
        for operand in inputs_of(op):
            if operand in owned:
                name = name or owned[operand]
            elif operand in recording.arguments:
                return None
    return name or owned.get(flow.same(value))


def _alone(flow: Flow, op: Node, weight: str, source: Node, result: Node) -> ModuleCall | None:
    """The call that only multiplies its input with ``weight``, of a module that owns it."""
    parameter = flow.paths.parameters.get(weight)
    names = flow.paths.of(parameter) if parameter is not None else (weight,)
    owners = {_owner(name) for name in names}
    for call in flow.recording.stack(call_of(op)):
        if not owners.intersection(_paths(flow, call)):
            continue
        given, made = flow.main_input(call), flow.main_output(call)
        if given is None or made is None:
            return None
        if flow.same(given) == flow.same(source) and _from(flow, made, op):
            return call
        return None
    return None


def _owner(name: str) -> str:
    return (
        name.partition(".parametrizations.")[0]
        if ".parametrizations." in name
        else (name.rpartition(".")[0])
    )


def _paths(flow: Flow, call: ModuleCall) -> tuple[str, ...]:
    module = flow.paths.modules.get(call.path)
    return flow.paths.of(module) if module is not None else (call.path,)


def _from(flow: Flow, made: Node, op: Node) -> bool:
    """Whether ``made`` is the product itself, up to its shape, its bias, and its scale."""
    value = made
    while True:
        maker = maker_of(value)
        if maker is None:
            return False
        if maker is op:
            return True
        kind = kind_of(maker)
        if kind not in RESHAPES and not (kind in ARITHMETIC and _with_own(flow, maker)):
            return False
        value = next((v for v in inputs_of(maker) if not flow.owned(v)), inputs_of(maker)[0])


def _with_own(flow: Flow, op: Node) -> bool:
    """Whether all but one of the operands are the model's own or plain numbers."""
    return sum(not flow.owned(value) for value in dict.fromkeys(inputs_of(op))) == 1
