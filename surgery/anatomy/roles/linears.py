"""The places where a weight of the model is multiplied with activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from surgery.anatomy.record import Call, Op, Value
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.operators import ARITHMETIC, CONVOLUTIONS, PRODUCTS, RESHAPES, WEIGHTED


@dataclass(frozen=True, eq=False)
class Linear:
    """One product with a weight.

    ``path`` is the module that does this and nothing else, ``call`` its run; both are None where
    another module reads the weight. ``source`` and ``result`` are the values in and out. It is
    ``pointwise`` unless it is a convolution over several positions; one of these is ``depthwise``
    if it mixes positions more than features, each group of these apart.
    """

    op: Op
    path: str | None
    call: Call | None
    weight: str
    source: int
    result: int
    pointwise: bool
    depthwise: bool


def linears(flow: Flow) -> dict[int, Linear]:
    """The linears of a record by the index of their operator."""
    found: dict[int, Linear] = {}
    for op, kind in zip(flow.ops, flow.kinds, strict=True):
        if kind in WEIGHTED and (linear := _linear(flow, op, kind)) is not None:
            found[op.index] = linear
    return found


def _linear(flow: Flow, op: Op, kind: str) -> Linear | None:
    operands = operands_of(op, kind)
    weighed = _weight(flow, operands, kind)
    if weighed is None or not op.outputs:
        return None
    weight, source = weighed
    result = op.outputs[0]
    if not flow.record.dtypes[result].is_floating_point or flow.owned(source):
        return None
    pointwise, depthwise = True, False
    if kind in CONVOLUTIONS:
        shape = flow.record.shapes[operands[1]]
        pointwise = all(size == 1 for size in shape[2:])
        depthwise = not pointwise and shape[1] < flow.record.shapes[source][-len(shape) + 1]
    call = None if _grouped(flow, operands, weight) else _alone(flow, op, weight, source, result)
    if call is None:
        return Linear(op, None, None, weight, source, result, pointwise, depthwise)
    given, made = flow.main_input(call), flow.main_output(call)
    assert given is not None
    assert made is not None
    return Linear(op, call.path, call, weight, given, made, pointwise, depthwise)


def operands_of(op: Op, kind: str) -> list[int]:
    """The values that are multiplied, in order."""
    given = list(_values((op.args, op.kwargs)))
    if kind in ("addmm", "baddbmm", "addbmm"):
        return given[1:3]
    return given[:2]


def _values(thing: Any) -> Iterable[int]:
    if isinstance(thing, Value):
        yield thing.number
    elif isinstance(thing, dict):
        yield from _values(tuple(cast("dict[str, Any]", thing).values()))
    elif isinstance(thing, tuple):
        for item in cast("tuple[Any, ...]", thing):
            yield from _values(item)


def _weight(flow: Flow, operands: list[int], kind: str) -> tuple[str, int] | None:
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


def _grouped(flow: Flow, operands: list[int], weight: str) -> bool:
    """Whether the blocks of one matrix are multiplied each with inputs of its own."""
    parameter = flow.paths.parameters.get(weight)
    shapes = [flow.record.shapes[v] for v in operands if flow.parameter(v) == weight]
    return parameter is not None and parameter.dim() == 2 and any(len(s) > 2 for s in shapes)


def _derived(flow: Flow, value: int) -> str | None:
    record = flow.record
    owned = {**record.parameters, **record.buffers}
    name: str | None = None
    for op in flow.backward(value, lambda _value, _op: False):
        for operand in op.inputs:
            if operand in owned:
                name = name or owned[operand]
            elif record.producer[operand] < 0 and operand in record.arguments:
                return None
    return name or owned.get(flow.same(value))


def _alone(flow: Flow, op: Op, weight: str, source: int, result: int) -> Call | None:
    """The call that only multiplies its input with ``weight``, of a module that owns it."""
    parameter = flow.paths.parameters.get(weight)
    names = flow.paths.of(parameter) if parameter is not None else (weight,)
    owners = {_owner(name) for name in names}
    for call in flow.record.stack(op.call):
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


def _paths(flow: Flow, call: Call) -> tuple[str, ...]:
    module = flow.paths.modules.get(call.path)
    return flow.paths.of(module) if module is not None else (call.path,)


def _from(flow: Flow, made: int, op: Op) -> bool:
    """Whether ``made`` is the product itself, up to its shape, its bias, and its scale."""
    value = made
    while True:
        maker = flow.op(value)
        if maker is None:
            return False
        if maker.index == op.index:
            return True
        kind = flow.kinds[maker.index]
        if kind not in RESHAPES and not (kind in ARITHMETIC and _with_own(flow, maker)):
            return False
        value = next((v for v in maker.inputs if not flow.owned(v)), maker.inputs[0])


def _with_own(flow: Flow, op: Op) -> bool:
    """Whether all but one of the operands are the model's own or plain numbers."""
    return sum(not flow.owned(value) for value in dict.fromkeys(op.inputs)) == 1
