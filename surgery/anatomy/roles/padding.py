"""Padding that a model does itself: Longformer, LED and Reformer fill their last window or chunk."""

from __future__ import annotations

from typing import Any, cast

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.operators import BLANKS


def unpadded(flow: Flow, value: int) -> int:
    """``value`` up to its shape, before padding was put behind it."""
    while True:
        value = flow.same(value)
        op = flow.op(value)
        if op is None or not pads(flow, op):
            return value
        value = op.inputs[0]


def pads(flow: Flow, op: Op) -> bool:
    """Whether ``op`` puts behind its first operand what is the same for all contents."""
    kind = flow.kinds[op.index]
    if kind == "cat":
        return len(op.inputs) > 1 and all(_is_padding(flow, value) for value in op.inputs[1:])
    if kind != "pad" or not op.inputs:
        return False
    widths = op.args[1] if len(op.args) > 1 else op.kwargs.get("pad", ())
    # Pairs of before and behind, from the last dim on.
    return isinstance(widths, tuple) and not any(cast("tuple[Any, ...]", widths)[::2])


def _is_padding(flow: Flow, value: int) -> bool:
    """Whether ``value`` are ids that say nothing, or what such ids were looked up as (LED)."""
    op = flow.op(flow.same(value))
    looked_up = op is not None and flow.kinds[op.index] == "embedding"
    return (looked_up or not flow.is_number(value)) and _is_blank(flow, value)


def _is_blank(flow: Flow, value: int) -> bool:
    """Whether ``value`` depends on nothing that the model was given, but for its shape."""

    def stop(_: int, op: Op) -> bool:
        return flow.kinds[op.index] in BLANKS

    if value in flow.record.arguments:
        return False
    ops = flow.backward(value, stop)
    return all(
        flow.kinds[op.index] in BLANKS or flow.record.arguments.isdisjoint(op.inputs) for op in ops
    )
