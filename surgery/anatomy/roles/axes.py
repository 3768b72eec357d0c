"""Which axis of a value holds its features: the last, or the second as after a convolution."""

from __future__ import annotations

from math import prod
from typing import Any, Literal, cast

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.operators import CHANNELS_FIRST, PASSIVE, POINTWISE

Layout = Literal["last", "first"]


def layout(flow: Flow, value: int) -> Layout:
    """Told from the operators that made ``value``."""
    rank = len(flow.record.shapes[value])
    return "first" if rank > 2 and feature_axis(flow, value) == 1 else "last"


def feature_axis(flow: Flow, value: int) -> int:
    """The axis of ``value`` with its features, counted from the front."""
    steps: list[Op] = []
    at = value
    shapes = flow.record.shapes
    while (op := flow.op(at)) is not None:
        kind = flow.kinds[op.index]
        if kind not in PASSIVE and kind not in POINTWISE and kind not in ("cat", "pad"):
            break
        steps.append(op)
        inputs = [v for v in op.inputs if not flow.owned(v)] or list(op.inputs)
        if not inputs:
            break
        at = max(inputs, key=lambda v: len(shapes[v]) if kind in POINTWISE else 0)
    maker = flow.op(at)
    axis = len(shapes[at]) - 1
    if (maker is not None and flow.kinds[maker.index] in CHANNELS_FIRST) or (
        maker is None and at in flow.record.arguments and len(shapes[at]) >= 4
    ):
        axis = 1
    for op in reversed(steps):
        axis = _moved(flow, op, axis)
    return axis


def _moved(flow: Flow, op: Op, axis: int) -> int:
    shapes = flow.record.shapes
    before = max((shapes[v] for v in op.inputs), key=len)
    after = shapes[op.outputs[0]]
    kind = flow.kinds[op.index]
    numbers = [arg for arg in op.args if isinstance(arg, int)]
    if kind == "transpose" and len(numbers) == 2:
        one, other = (n % len(after) for n in numbers)
        return other if axis == one else one if axis == other else axis
    if kind in ("T", "t", "mT", "H"):
        return len(after) - 1 - axis
    if kind == "permute":
        rest = op.args[1:]
        if rest and isinstance(rest[0], tuple):
            rest = cast("tuple[Any, ...]", rest[0])
        order = [int(n) for n in rest]
        if len(order) == len(after):
            return [n % len(after) for n in order].index(axis)
    if len(before) == len(after) and kind not in ("view", "reshape"):
        return axis
    if axis == len(before) - 1:
        return len(after) - 1
    return _merged(before, after, axis)


def _merged(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int:
    """The axis of ``after`` that holds all of ``axis`` after a reshape; the last if none does.

    SqueezeBERT merges heads with their features ahead of the length.
    """
    start, end = prod(before[:axis]), prod(before[: axis + 1])
    for at in range(len(after)):
        if prod(after[:at]) <= start and end <= prod(after[: at + 1]):
            return at
    return len(after) - 1
