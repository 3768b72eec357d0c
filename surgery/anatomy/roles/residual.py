"""Residual sums: where the result of a branch is added to the value it branched off from."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear
from surgery.anatomy.roles.operators import RESHAPES, WHOLE_ATTENTIONS


@dataclass(frozen=True)
class Sum:
    """``result`` is ``skip`` plus the branches; all additions in between are one sum.

    ``partial`` are the values of which the sum consists, sums of several branches included.
    """

    result: int
    skip: int
    branches: tuple[int, ...]
    partial: frozenset[int]


def sums(flow: Flow, linears: Mapping[int, Linear]) -> list[Sum]:
    """The residual sums of a record, in order."""
    products = 0
    for index, kind in enumerate(flow.kinds):
        linear = linears.get(index)
        if (linear is not None and not linear.depthwise) or kind in WHOLE_ATTENTIONS:
            products |= 1 << index
    inner: set[int] = set()
    found: list[Sum] = []
    for op in reversed(flow.ops):
        if op.index in inner or not _adds(flow, op):
            continue
        leaves: list[int] = []
        nodes: list[int] = []
        _grow(flow, op, leaves, nodes, inner)
        skip = _skip(flow, leaves, products)
        if skip is not None:
            branches = tuple(leaf for leaf in leaves if leaf != skip)
            partial = frozenset((*branches, *(n for n in nodes if n != op.outputs[0])))
            found.append(Sum(op.outputs[0], skip, branches, partial))
    return found[::-1]


def _adds(flow: Flow, op: Op) -> bool:
    if flow.kinds[op.index] != "add" or len(op.inputs) < 2 or not op.outputs:
        return False
    shapes, result = flow.record.shapes, op.outputs[0]
    if not flow.is_hidden(result):
        return False
    return all(shapes[v] == shapes[result] for v in op.inputs[:2]) and not any(
        flow.owned(v) for v in op.inputs[:2]
    )


def _grow(flow: Flow, op: Op, leaves: list[int], nodes: list[int], inner: set[int]) -> None:
    """Take apart an addition; one whose result is read elsewhere, too, stays whole."""
    for value in op.inputs[:2]:
        below = flow.op(_lone(flow, value))
        if below is not None and below.outputs[0] not in leaves and _adds(flow, below):
            alone = len(flow.record.consumers[below.outputs[0]]) == 1
            if alone and _once(flow, value):
                inner.add(below.index)
                nodes.append(below.outputs[0])
                _grow(flow, below, leaves, nodes, inner)
                continue
        leaves.append(value)


def _lone(flow: Flow, value: int) -> int:
    """``value`` before casts and dropouts that keep its shape."""
    shapes = flow.record.shapes
    while (op := flow.op(value)) is not None:
        same = flow.kinds[op.index] in RESHAPES and op.inputs
        if not same or shapes[op.inputs[0]] != shapes[value]:
            break
        value = op.inputs[0]
    return value


def _once(flow: Flow, value: int) -> bool:
    return len(flow.record.consumers[value]) == 1


def _skip(flow: Flow, leaves: list[int], products: int) -> int | None:
    """The summand from which all others are computed, by linears."""
    for leaf in leaves:
        base = unscaled(flow, leaf)
        mark, behind = flow.bit(base), flow.history(base)
        others = [other for other in leaves if other != leaf]
        if (
            others
            and mark
            and all(
                flow.history(other) & mark and flow.history(other) & ~behind & products
                for other in others
            )
        ):
            return leaf
    return None


def unscaled(flow: Flow, value: int) -> int:
    """``value`` before it was reshaped, or scaled or shifted by what the model owns."""
    while (before := before_scale(flow, value)) is not None:
        value = before
    return value


def before_scale(flow: Flow, value: int) -> int | None:
    """One step back through a reshape or a scale, or None if ``value`` comes from something else."""
    op = flow.op(value)
    if op is None or not op.inputs:
        return None
    kind = flow.kinds[op.index]
    if kind in RESHAPES:
        return op.inputs[0]
    if kind not in ("mul", "div", "add"):
        return None
    hidden = [v for v in dict.fromkeys(op.inputs) if not _constant(flow, v)]
    if len(hidden) != 1 or flow.record.shapes[hidden[0]] != flow.record.shapes[value]:
        return None
    return hidden[0]


def _constant(flow: Flow, value: int) -> bool:
    """A parameter, or one number computed from parameters (tanh of a gate)."""
    if flow.owned(value) or not flow.record.shapes[value]:
        return True
    op = flow.op(value)
    return op is not None and all(flow.owned(v) for v in op.inputs) and bool(op.inputs)


def branch_ends(flow: Flow, branch: int, whole: Container[int] = ()) -> Iterator[int]:
    """Values that a branch might end with, last first: before scales, norms, and sums of two.

    Sums in ``whole`` are residual ones themselves and stay whole.
    """
    waiting = [branch]
    for value in waiting:
        end = value
        while (before := flow.before_norm(end)) is None:
            step = before_scale(flow, end)
            if step is None:
                break
            end = step
        yield end
        op = flow.op(end)
        if before is not None:
            waiting.append(before)
        elif op is not None and end not in whole and _adds(flow, op):
            waiting += op.inputs[:2]
