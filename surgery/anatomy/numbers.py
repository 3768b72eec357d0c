"""Which numbers of a model decided the way that its forward went."""

from __future__ import annotations

import torch

from surgery.anatomy.record import Op, Record
from surgery.anatomy.roles.operators import kind

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


def deciding(record: Record) -> frozenset[str] | None:
    """The parameters and buffers whose numbers might have led another way; None if any might.

    They might if they are behind anything that Python was shown, or that a tensor's size is made
    of, as a router's are. A run on fake tensors knows of no numbers.
    """
    if record.how == "fake":
        return frozenset()
    if not record.followed or record.blind is None:
        return None
    own = {**record.parameters, **record.buffers}
    waiting = [*record.numbers, *record.counts]
    for op in record.ops:
        if _sized(op, record):
            waiting += op.inputs
    known = set(waiting)
    found: set[str] = set()
    for value in waiting:
        if value in record.strangers:
            return None
        if value in own:
            found.add(own[value])
        producer = record.producer[value]
        if producer >= 0:
            fresh = [v for v in record.ops[producer].inputs if v not in known]
            known.update(fresh)
            waiting += fresh
    return frozenset(found)


def _sized(op: Op, record: Record) -> bool:
    name = kind(op.name)
    if name in _PICKING:
        return any(record.dtypes[value] is torch.bool for value in op.inputs[1:])
    return name in _SIZED or (name == "where" and len(op.inputs) == 1)
