"""Padding that a model does itself: Longformer, LED and Reformer fill their last window or chunk."""

from __future__ import annotations

from typing import Any, cast

from torch.fx import Node

from surgery.anatomy.graph import argument_of, inputs_of, kind_of, maker_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.operators import BLANKS


def unpadded(flow: Flow, value: Node) -> Node:
    """``value`` up to its shape, before padding was put behind it."""
    while True:
        value = flow.same(value)
        op = maker_of(value)
        if op is None or not pads(flow, op):
            return value
        value = inputs_of(op)[0]


def pads(flow: Flow, op: Node) -> bool:
    """Whether ``op`` puts behind its first operand what is the same for all contents."""
    kind = kind_of(op)
    if kind == "cat":
        return len(inputs_of(op)) > 1 and all(
            _is_padding(flow, value) for value in inputs_of(op)[1:]
        )
    if kind != "pad" or not inputs_of(op):
        return False
    widths = argument_of(op, 1, "pad", ())
    # Pairs of before and behind, from the last dim on.
    return isinstance(widths, tuple | list) and not any(cast("tuple[Any, ...]", widths)[::2])


def _is_padding(flow: Flow, value: Node) -> bool:
    """Whether ``value`` are ids that say nothing, or what such ids were looked up as (LED)."""
    op = maker_of(flow.same(value))
    looked_up = op is not None and kind_of(op) == "embedding"
    return (looked_up or not flow.is_number(value)) and _is_blank(flow, value)


def _is_blank(flow: Flow, value: Node) -> bool:
    """Whether ``value`` depends on nothing that the model was given, but for its shape."""

    def stop(_: Node, op: Node) -> bool:
        return kind_of(op) in BLANKS

    if value in flow.recording.arguments:
        return False
    ops = flow.backward(value, stop)
    return all(
        kind_of(op) in BLANKS or flow.recording.arguments.isdisjoint(inputs_of(op)) for op in ops
    )
