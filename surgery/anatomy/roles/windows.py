"""Cores whose queries see windows of keys: what of them new keys need, proven by running them again.

Scores of windows are cut, shifted and written into others before their softmax, and so are weights
before they meet values. Keys that every query sees need none of it: their scores are those of the
queries, and what their values add is added to the context.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from surgery.anatomy.attention_core import Windows
from surgery.anatomy.graph import (
    index_of,
    inputs_of,
    kind_of,
    maker_of,
    outputs_of,
    readers,
    shape_of,
    strides_of,
)
from surgery.anatomy.rerun import PartialRun, between, is_dense, rerun
from surgery.anatomy.roles.cores import RecordedCore
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layouts import Order
from surgery.anatomy.roles.linears import operands_of
from surgery.anatomy.roles.trails import CUTS, LINEAR, SCORED


def windows(flow: Flow, core: RecordedCore) -> Windows | None:
    """How queries and context of ``core`` are found, or None if it is not sure that they are."""
    _, softmax, _ = core.ops
    queries = _queries(flow, core, inputs_of(softmax)[0])
    context = _context(flow, softmax)
    if queries is None or context is None:
        return None
    return Windows(*queries, *context)


def _queries(flow: Flow, core: RecordedCore, scores: Node) -> tuple[tuple[str, ...], Order] | None:
    """The cuts from the queries to their product, and the axes of queries as scores have them."""
    cuts: list[str] = []
    value = core.q
    while True:
        order = _order(flow, value, scores)
        if order is not None:
            scaled = _unscaled(flow, value, scores, order)
            return (tuple(cuts), order) if scaled else None
        op = maker_of(value)
        if op is None or kind_of(op) not in CUTS:
            return None
        cuts.append(kind_of(op))
        value = inputs_of(op)[0]


def _context(flow: Flow, softmax: Node) -> tuple[tuple[str, ...], Order] | None:
    """The cuts from a product of weights to the context, and its axes as weights have them."""
    weights = outputs_of(softmax)[0]
    reached = list(flow.forward(weights, lambda op: kind_of(op) not in LINEAR))
    products = [op for op in reached if kind_of(op) in SCORED]
    for product in sorted(products, key=lambda op: -index_of(op)):
        cuts: list[str] = []
        for value in _cut(flow, outputs_of(product)[0], cuts):
            order = _order(flow, value, weights, forward=True)
            if order is not None:
                return (tuple(cuts), order) if _is_linear(flow, weights, value) else None
    return None


def _cut(flow: Flow, value: Node, cuts: list[str]) -> Iterator[Node]:
    """``value`` and what it is cut to, one after the other; their kinds go to ``cuts``."""
    while True:
        yield value
        reading = readers(value)
        following = [op for op in reading if kind_of(op) in CUTS]
        if len(following) != 1 or len(reading) != 1:
            return
        cuts.append(kind_of(following[0]))
        value = outputs_of(following[0])[0]


def _order(flow: Flow, value: Node, scores: Node, forward: bool = False) -> Order | None:
    """The axes of ``value`` in the order of those of ``scores``, with its features last.

    None if its slices are not those of scores, each made of the other's alone. ``forward`` tells
    that the scores, or weights, come first.
    """
    recording = flow.recording
    shape, rank = shape_of(value), len(shape_of(scores))
    if len(shape) != rank or sorted(shape[:-1]) != sorted(shape_of(scores)[:-1]):
        return None
    source, end = (scores, value) if forward else (value, scores)
    if not is_dense(shape_of(source), strides_of(source)):
        return None
    made = rerun(recording, source, (end,), seen=not forward)
    if made is None:
        return None
    order: list[int] = []
    for axis in range(rank - 1):
        others = (a for a in range(rank) if a not in order)
        pairs = ((axis, a) for a in others)
        found = next((a for at, a in pairs if _together(made, source, end, at, a, forward)), None)
        if found is None:
            return None
        order.append(found)
    return (*order, *(a for a in range(rank) if a not in order))


def _together(
    made: PartialRun, source: Node, end: Node, scored: int, axis: int, forward: bool
) -> bool:
    """Whether the slices of scores along an axis are made of the value's along ``axis`` alone."""
    start, result = made.start, made.env[end]
    at_end, at_start = (axis, scored) if forward else (scored, axis)
    size = result.shape[at_end]
    if start.shape[at_start] != size or not result.requires_grad:
        return False
    for index in {0, size // 2, size - 1}:
        part = result.select(at_end, index)
        weights = torch.rand(part.shape, generator=made.generator) + 0.5
        (found,) = torch.autograd.grad(
            part, start, weights.to(part.dtype), retain_graph=True, materialize_grads=True
        )
        reached = found.ne(0).movedim(at_start, 0).flatten(1).any(1)
        if int(reached.sum()) != 1 or not bool(reached[index]):
            return False
    return True


def _unscaled(flow: Flow, queries: Node, scores: Node, order: Order) -> bool:
    """Whether scores are the products of queries with keys, and nothing times that."""
    recording = flow.recording
    made = rerun(recording, queries, (scores,))
    if made is None:
        return False
    keys = [
        made.env[v]
        for op in between(recording, queries, (scores,))
        if kind_of(op) in SCORED
        for v in operands_of(op, kind_of(op))
        if v in made.env
    ]
    features = made.start.shape[order[-1]]
    rows = [
        matrix.reshape(-1, features)
        for key in keys
        for matrix in (key, key.mT)
        if matrix.shape[-1] == features
    ]
    middle = tuple(size // 2 for size in made.env[scores].shape[:-1])
    seen = 0
    for score in made.env[scores][middle]:
        (found,) = torch.autograd.grad(score, made.start, retain_graph=True, materialize_grads=True)
        gradient = found.permute(order)[middle]
        if not bool(gradient.any()):
            continue
        seen += 1
        if not any(bool(torch.isclose(row, gradient).all(-1).any()) for row in rows):
            return False
    return seen > 0


def _is_linear(flow: Flow, weights: Node, context: Node) -> bool:
    """Whether twice the weights give twice the context."""

    def of(scale: float) -> Tensor | None:
        made = rerun(flow.recording, weights, (context,), seen=False, scale=scale)
        return None if made is None else made.env[context]

    one, two = of(1.0), of(2.0)
    return one is not None and two is not None and torch.allclose(2 * one, two)
