"""Attention cores: softmax(q kᵀ) v, by whatever functions it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from surgery.anatomy.record import Op, Value
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layouts import scoring
from surgery.anatomy.roles.linears import Linear, operands_of
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


@dataclass(frozen=True)
class Core:
    """One attention: the three operands, the result, and the operators it consists of.

    ``whole`` marks functions with the projections inside: their operands are hidden states.
    """

    q: int
    k: int
    v: int
    result: int
    ops: tuple[Op, ...]
    whole: bool = False


def cores(flow: Flow, linears: Mapping[int, Linear], scores: Scores) -> Iterator[Core]:
    """The attention cores of a record, in order.

    Where no scores are softened, those that are bent in another way weigh values, too.
    """
    found = list(_softened(flow, linears, scores))
    yield from found or _bent(flow, linears)


def _softened(flow: Flow, linears: Mapping[int, Linear], scores: Scores) -> Iterator[Core]:
    for op, kind in zip(flow.ops, flow.kinds, strict=True):
        if kind in ATTENTIONS or kind in WHOLE_ATTENTIONS:
            named = [op.kwargs.get(name) for name in ("query", "key", "value")]
            given = [v for v in (*op.args[:3], *named) if isinstance(v, Value)]
            if len(given) >= 3:
                q, k, v = (value.number for value in given[:3])
                if flow.owned(q) and kind in ATTENTIONS:
                    continue  # one query for all tokens, none of their own: it only weighs
                yield Core(q, k, v, op.outputs[0], (op,), kind in WHOLE_ATTENTIONS)
        elif kind == "softmax":
            core = _around(flow, linears, op, op.outputs[0], scores)
            if core is not None:
                yield core
        elif op.index in scores.ends:
            core = _around(flow, linears, scores.ends[op.index], op.outputs[0], scores)
            if core is not None:
                yield core


def _bent(flow: Flow, linears: Mapping[int, Linear]) -> Iterator[Core]:
    """Kernels in place of a softmax: products of activations, bent, and multiplied with others."""

    def is_product(op: Op) -> bool:
        return flow.kinds[op.index] in PRODUCTS and op.index not in linears

    def stop(op: Op) -> bool:
        return flow.kinds[op.index] not in PASSIVE | POINTWISE | _KERNELS

    for scores in filter(is_product, flow.ops):
        operands = operands_of(scores, flow.kinds[scores.index])
        if len(operands) < 2 or any(map(flow.constant, operands)):
            continue
        q, k = operands
        reached = list(flow.forward(scores.outputs[0], stop))
        bend = next((op for op in reached if flow.kinds[op.index] in BENDS | _KERNELS), None)
        product = next(filter(is_product, reached), None)
        if bend is None or product is None or bend.index > product.index:
            continue
        weights, values = operands_of(product, flow.kinds[product.index])
        if flow.depends(weights, bend.outputs[0]) and not flow.depends(values, bend.outputs[0]):
            yield Core(q, k, values, product.outputs[0], (scores, bend, product))


_KERNELS = frozenset(("acos", "cos", "square"))
"""What bends scores beside activations."""


def _around(
    flow: Flow, linears: Mapping[int, Linear], softmax: Op, soft: int, scores: Scores
) -> Core | None:
    """The products of activations on both sides of a softmax, whose weights are ``soft``."""

    def is_product(op: Op) -> bool:
        return flow.kinds[op.index] in PRODUCTS and op.index not in linears

    def stop(op: Op) -> bool:
        kind = flow.kinds[op.index]
        ends = kind in NORMS or kind in BLANKS or kind == "embedding"
        return ends or op.index in linears or is_product(op)

    # A mask may be the choice of other scores, those of an indexer: they are not weighed here.
    behind = flow.backward(softmax.inputs[0], lambda v, op: stop(op) or not flow.is_number(v))
    products = {op.index: op for op in behind if is_product(op)}
    if not products:
        return None
    # DeBERTa adds products with positions later than the one with keys.
    trail = scores.softmaxes.get(softmax.index)
    known = trail is not None and trail.product.index in products
    scored: Op = trail.product if trail and known else products[min(products)]
    for op in flow.forward(soft, stop):
        if not is_product(op):
            continue
        q, k = operands_of(scored, flow.kinds[scored.index])
        weights, values = operands_of(op, flow.kinds[op.index])
        softened = flow.bit(soft)
        if flow.history(values) & softened:
            weights, values = values, weights
        if scored.name == "einsum":
            ranks = (len(flow.record.shapes[q]), len(flow.record.shapes[k]))
            axes = scoring(str(scored.args[0]), ranks)
            q, k = (k, q) if axes is not None and axes.keys_at == 0 else (q, k)
        if flow.history(weights) & softened and not flow.history(values) & softened:
            return Core(q, k, values, op.outputs[0], (scored, softmax, op))
    return None
