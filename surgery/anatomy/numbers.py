"""Which numbers of a model decided the way that its forward went."""

from __future__ import annotations

import torch
from torch.fx import Node

from surgery.anatomy.graph import Recording, count_of, dtype_of, inputs_of, kind_of, maker_of

_SIZED = frozenset(
    [
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "_unique2",
        "unique_consecutive",
        "unique_dim",
        "bincount",
        "histc",
        "repeat_interleave",
        "one_hot",
    ]
)
"""Functions with results whose size depends on the numbers that they are given."""
_PICKING = frozenset(("getitem", "index"))


def deciding(recording: Recording) -> frozenset[str] | None:
    """The parameters and buffers whose numbers might have led another way; None if any might.

    They might if they are behind anything that Python was shown, or that a tensor's size is made
    of, as a router's are. A run on fake tensors knows of no numbers.
    """
    if recording.how == "fake":
        return frozenset()
    if not recording.followed or recording.blind is None:
        return None
    own = {**recording.parameters, **recording.buffers}
    waiting = [*recording.numbers, *(v for v in recording.values if count_of(v) is not None)]
    for op in recording.ops:
        if _sized(op):
            waiting += inputs_of(op)
    known = set(waiting)
    found: set[str] = set()
    for value in waiting:
        if value in own:
            found.add(own[value])
        elif value in recording.strangers or value.op == "get_attr":
            return None  # a tensor that is neither
        maker = maker_of(value)
        if maker is not None:
            fresh = [v for v in inputs_of(maker) if v not in known]
            known.update(fresh)
            waiting += fresh
    return frozenset(found)


def _sized(op: Node) -> bool:
    kind = kind_of(op)
    if kind in _PICKING:
        return any(dtype_of(value) is torch.bool for value in inputs_of(op)[1:])
    return kind in _SIZED or (kind == "where" and len(inputs_of(op)) == 1)
