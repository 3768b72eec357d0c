"""Residual sums: where the result of a branch is added to the value it branched off from."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Node

from surgery.anatomy.graph import (
    index_of,
    inputs_of,
    kind_of,
    maker_of,
    outputs_of,
    readers,
    shape_of,
)
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear
from surgery.anatomy.roles.operators import RESHAPES, WHOLE_ATTENTIONS


@dataclass(frozen=True)
class Sum:
    """``result`` is ``skip`` plus the branches; all additions in between are one sum.

    ``partial`` are the values of which the sum consists, sums of several branches included.
    """

    result: Node
    skip: Node
    branches: tuple[Node, ...]
    partial: frozenset[Node]


def sums(flow: Flow, linears: Mapping[Node, RecordedLinear]) -> list[Sum]:
    """The residual sums of a record, in order."""
    products = 0
    for op in flow.ops:
        linear = linears.get(op)
        if (linear is not None and not linear.depthwise) or kind_of(op) in WHOLE_ATTENTIONS:
            products |= 1 << index_of(op)
    inner: set[Node] = set()
    found: list[Sum] = []
    for op in reversed(flow.ops):
        if op in inner or not _adds(flow, op):
            continue
        leaves: list[Node] = []
        nodes: list[Node] = []
        _grow(flow, op, leaves, nodes, inner)
        skip = _skip(flow, leaves, products)
        if skip is not None:
            branches = tuple(leaf for leaf in leaves if leaf != skip)
            partial = frozenset((*branches, *(n for n in nodes if n != outputs_of(op)[0])))
            found.append(Sum(outputs_of(op)[0], skip, branches, partial))
    return found[::-1]


def _adds(flow: Flow, op: Node) -> bool:
    if kind_of(op) != "add" or len(inputs_of(op)) < 2 or not outputs_of(op):
        return False
    result = outputs_of(op)[0]
    if not flow.is_hidden(result):
        return False
    return all(shape_of(v) == shape_of(result) for v in inputs_of(op)[:2]) and not any(
        flow.owned(v) for v in inputs_of(op)[:2]
    )


def _grow(flow: Flow, op: Node, leaves: list[Node], nodes: list[Node], inner: set[Node]) -> None:
    """Take apart an addition; one whose result is read elsewhere, too, stays whole."""
    for value in inputs_of(op)[:2]:
        below = maker_of(_lone(flow, value))
        if below is not None and outputs_of(below)[0] not in leaves and _adds(flow, below):
            alone = len(readers(outputs_of(below)[0])) == 1
            if alone and _once(flow, value):
                inner.add(below)
                nodes.append(outputs_of(below)[0])
                _grow(flow, below, leaves, nodes, inner)
                continue
        leaves.append(value)


def _lone(flow: Flow, value: Node) -> Node:
    """``value`` before casts and dropouts that keep its shape."""
    while (op := maker_of(value)) is not None:
        same = kind_of(op) in RESHAPES and inputs_of(op)
        if not same or shape_of(inputs_of(op)[0]) != shape_of(value):
            break
        value = inputs_of(op)[0]
    return value


def _once(flow: Flow, value: Node) -> bool:
    return len(readers(value)) == 1


def _skip(flow: Flow, leaves: list[Node], products: int) -> Node | None:
    """The summand from which all others are computed, by linears."""
    # Gemma: the first layer adds to the embeddings after they were scaled.
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


def unscaled(flow: Flow, value: Node) -> Node:
    """``value`` before it was reshaped, or scaled or shifted by what the model owns."""
    while (before := before_scale(flow, value)) is not None:
        value = before
    return value


def before_scale(flow: Flow, value: Node) -> Node | None:
    """One step back through a reshape or a scale, or None if ``value`` comes from something else."""
    op = maker_of(value)
    if op is None or not inputs_of(op):
        return None
    kind = kind_of(op)
    if kind in RESHAPES:
        return inputs_of(op)[0]
    if kind not in ("mul", "div", "add"):
        return None
    hidden = [v for v in dict.fromkeys(inputs_of(op)) if not _constant(flow, v)]
    if len(hidden) != 1 or shape_of(hidden[0]) != shape_of(value):
        return None
    return hidden[0]


def _constant(flow: Flow, value: Node) -> bool:
    """A parameter, or one number computed from parameters (tanh of a gate)."""
    if flow.owned(value) or not shape_of(value):
        return True
    op = maker_of(value)
    return op is not None and all(flow.owned(v) for v in inputs_of(op)) and bool(inputs_of(op))


def branch_ends(flow: Flow, branch: Node, whole: Container[Node] = ()) -> Iterator[Node]:
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
        op = maker_of(end)
        if before is not None:
            waiting.append(before)
        elif op is not None and end not in whole and _adds(flow, op):
            waiting += inputs_of(op)[:2]
