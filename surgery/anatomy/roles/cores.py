"""Attention cores: softmax(q kᵀ) v, by whatever functions it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Node

from surgery.anatomy.graph import index_of, inputs_of, kind_of, outputs_of, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layouts import scoring
from surgery.anatomy.roles.linears import RecordedLinear, operands_of
from surgery.anatomy.roles.operators import (
    ATTENTIONS,
    BENDS,
    BLANKS,
    NORMS,
    PASSIVE,
    POINTWISE,
    PRODUCTS,
    WHOLE_ATTENTIONS,
)
from surgery.anatomy.roles.scores import Scores
from surgery.anatomy.roles.softmaxes import FORMS


@dataclass(frozen=True)
class RecordedCore:
    """One attention: the three operands, the result, and the operators it consists of.

    ``whole`` marks functions with the projections inside: their operands are hidden states.
    """

    q: Node
    k: Node
    v: Node
    result: Node
    ops: tuple[Node, ...]
    whole: bool = False


def cores(
    flow: Flow, linears: Mapping[Node, RecordedLinear], scores: Scores
) -> Iterator[RecordedCore]:
    """The attention cores of a record, in order.

    Where no scores are softened, those that are bent in another way weigh values, too.
    """
    found = list(_softened(flow, linears, scores))
    yield from found or _bent(flow, linears)


def _softened(
    flow: Flow, linears: Mapping[Node, RecordedLinear], scores: Scores
) -> Iterator[RecordedCore]:
    for op in flow.ops:
        kind = kind_of(op)
        if kind in ATTENTIONS or kind in WHOLE_ATTENTIONS:
            named = [op.kwargs.get(name) for name in ("query", "key", "value")]
            given = [v for v in (*op.args[:3], *named) if isinstance(v, Node)]
            if len(given) >= 3:
                q, k, v = (value for value in given[:3])
                if flow.owned(q) and kind in ATTENTIONS:
                    continue  # one query for all tokens, none of their own: it only weighs
                yield RecordedCore(q, k, v, outputs_of(op)[0], (op,), kind in WHOLE_ATTENTIONS)
        elif kind in FORMS and FORMS[kind].is_whole:
            core = _around(flow, linears, op, outputs_of(op)[0], scores)
            if core is not None:
                yield core
        elif op in scores.ends:
            core = _around(flow, linears, scores.ends[op], outputs_of(op)[0], scores)
            if core is not None:
                yield core


def _bent(flow: Flow, linears: Mapping[Node, RecordedLinear]) -> Iterator[RecordedCore]:
    """Kernels in place of a softmax: products of activations, bent, and multiplied with others.

    YOSO: (1 - acos(q kᵀ) / π) to a power.
    """

    def is_product(op: Node) -> bool:
        return kind_of(op) in PRODUCTS and op not in linears

    def stop(op: Node) -> bool:
        return kind_of(op) not in PASSIVE | POINTWISE | _KERNELS

    for scores in filter(is_product, flow.ops):
        operands = operands_of(scores, kind_of(scores))
        if len(operands) < 2 or any(map(flow.constant, operands)):
            continue
        q, k = operands
        reached = list(flow.forward(outputs_of(scores)[0], stop))
        bend = next((op for op in reached if kind_of(op) in BENDS | _KERNELS), None)
        product = next(filter(is_product, reached), None)
        if bend is None or product is None or index_of(bend) > index_of(product):
            continue
        pair = operands_of(product, kind_of(product))
        if len(pair) < 2:
            continue
        weights, values = pair
        if flow.depends(weights, outputs_of(bend)[0]) and not flow.depends(
            values, outputs_of(bend)[0]
        ):
            yield RecordedCore(q, k, values, outputs_of(product)[0], (scores, bend, product))


_KERNELS = frozenset(("acos", "cos", "square"))
"""What bends scores beside activations."""


def _around(
    flow: Flow, linears: Mapping[Node, RecordedLinear], softmax: Node, soft: Node, scores: Scores
) -> RecordedCore | None:
    """The products of activations on both sides of a softmax, whose weights are ``soft``."""

    def is_product(op: Node) -> bool:
        return kind_of(op) in PRODUCTS and op not in linears

    def stop(op: Node) -> bool:
        kind = kind_of(op)
        ends = kind in NORMS or kind in BLANKS or kind == "embedding"
        return ends or op in linears or is_product(op)

    # A mask may be the choice of other scores, those of an indexer: they are not weighed here.
    behind = flow.backward(inputs_of(softmax)[0], lambda v, op: stop(op) or not flow.is_number(v))
    products = {op: op for op in behind if is_product(op)}
    if not products:
        return None
    # DeBERTa adds products with positions later than the one with keys.
    trail = scores.softmaxes.get(softmax)
    known = trail is not None and trail.product in products
    scored: Node = trail.product if trail and known else products[min(products)]
    for op in flow.forward(soft, stop):
        if not is_product(op):
            continue
        q, k = operands_of(scored, kind_of(scored))
        pair = operands_of(op, kind_of(op))
        if len(pair) < 2:
            continue
        weights, values = pair
        softened = flow.bit(soft)
        if flow.history(values) & softened:
            weights, values = values, weights
        if scored.name == "einsum":
            ranks = (len(shape_of(q)), len(shape_of(k)))
            axes = scoring(str(scored.args[0]), ranks)
            q, k = (k, q) if axes is not None and axes.keys_at == 0 else (q, k)
        if flow.history(weights) & softened and not flow.history(values) & softened:
            return RecordedCore(q, k, values, outputs_of(op)[0], (scored, softmax, op))
    return None
