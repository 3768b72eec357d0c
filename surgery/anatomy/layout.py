"""Which axis of a value counts features: the last one, or the one after the batch."""

from __future__ import annotations

from typing import Literal

from surgery.anatomy.graph import Graph
from surgery.anatomy.operators import plain
from surgery.anatomy.record import Op

Layout = Literal["last", "first"]

_FIRST = (
    "conv",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "interpolate",
    "pixel",
    "max_pool",
    "avg_pool",
    "adaptive",
)
_LAST = ("linear", "layer_norm", "rms_norm", "embedding", "scaled_dot", "matmul", "bmm", "addmm")


def layout_of(graph: Graph, value: int) -> Layout:
    """Follow ``value`` back to the operator that laid it out, through axes moved on the way."""
    record = graph.record
    rank = len(record.shapes[value])
    if rank < 3:
        return "last"
    # Axes of the value in question, as axes of the value in hand.
    axes: list[int] | None = list(range(rank))
    while record.producer[value] >= 0:
        op = record.ops[record.producer[value]]
        name = plain(op.name)
        if name.startswith(_FIRST):
            return "first" if axes and axes.index(1) == 1 else "last"
        if name.startswith(_LAST):
            end = len(record.shapes[value]) - 1
            return "first" if axes and end in axes and axes.index(end) == 1 else "last"
        axes = _moved(graph, op, value, axes)
        if axes is None:
            return "last"
        value = op.inputs[0]
    # A model's own input: images have their channels first.
    return "first" if rank == 4 and axes is not None and axes[1] == 1 and rank > 3 else "last"


def _moved(graph: Graph, op: Op, value: int, axes: list[int]) -> list[int] | None:
    """``axes`` in terms of the operator's first input; None if they can't be told."""
    if not op.inputs:
        return None
    before, after = graph.record.shapes[op.inputs[0]], graph.record.shapes[value]
    name = plain(op.name)
    order = list(range(len(after)))
    if name in ("transpose", "swapaxes", "swapdims") and len(op.args) == 3:
        a, b = (int(axis) % len(after) for axis in op.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif name == "permute":
        given = op.args[1] if len(op.args) == 2 else op.args[1:]
        order = [int(axis) % len(after) for axis in given]
    elif name == "flatten" and len(before) > len(after) and before[1] == after[1]:
        # The axes after the channels were joined into one.
        return axes
    elif before != after:
        return None
    return [order[axis] for axis in axes]
