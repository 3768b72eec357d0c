"""Which axis of a value holds its features: the last, or the second as after a convolution."""

from __future__ import annotations

from math import prod
from typing import Any, Literal, cast

from torch.fx import Node

from surgery.anatomy.graph import inputs_of, kind_of, maker_of, outputs_of, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.operators import CHANNELS_FIRST, PASSIVE, POINTWISE

Layout = Literal["last", "first"]


def layout(flow: Flow, value: Node) -> Layout:
    """Told from the operators that made ``value``."""
    rank = len(shape_of(value))
    return "first" if rank > 2 and feature_axis(flow, value) == 1 else "last"


def feature_axis(flow: Flow, value: Node) -> int:
    """The axis of ``value`` with its features, counted from the front."""
    steps: list[Node] = []
    at = value
    while (op := maker_of(at)) is not None:
        kind = kind_of(op)
        if kind not in PASSIVE and kind not in POINTWISE and kind not in ("cat", "pad"):
            break
        steps.append(op)
        inputs = [v for v in inputs_of(op) if not flow.owned(v)] or list(inputs_of(op))
        if not inputs:
            break
        at = max(inputs, key=lambda v: len(shape_of(v)) if kind in POINTWISE else 0)
    maker = maker_of(at)
    axis = len(shape_of(at)) - 1
    if (maker is not None and kind_of(maker) in CHANNELS_FIRST) or (
        maker is None and at in flow.recording.arguments and len(shape_of(at)) >= 4
    ):
        axis = 1
    for op in reversed(steps):
        axis = _moved(flow, op, axis)
    return axis


def _moved(flow: Flow, op: Node, axis: int) -> int:
    before = max((shape_of(v) for v in inputs_of(op)), key=len)
    after = shape_of(outputs_of(op)[0])
    kind = kind_of(op)
    numbers = [arg for arg in op.args if isinstance(arg, int)]
    if kind == "transpose" and len(numbers) == 2:
        one, other = (n % len(after) for n in numbers)
        return other if axis == one else one if axis == other else axis
    if kind in ("T", "t", "mT", "H"):
        return len(after) - 1 - axis
    if kind == "permute":
        rest = cast("tuple[Any, ...]", op.args[1:])
        if rest and isinstance(rest[0], tuple | list):
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
