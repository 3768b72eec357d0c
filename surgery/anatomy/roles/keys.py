"""What is to be known of an attention core to put keys in front of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Literal

from surgery.anatomy import site
from surgery.anatomy.record import Op
from surgery.anatomy.roles.cores import Core
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layouts import Order, Scoring, Weighing, scoring, weighing
from surgery.anatomy.roles.linears import operands_of
from surgery.anatomy.roles.operators import ATTENTIONS, PASSIVE, RESHAPES, WHOLE_ATTENTIONS
from surgery.anatomy.roles.trails import SCORED, STEPS, VIEWS

_SDPA = 'if the model has it, load it with attn_implementation="sdpa"'


def described(flow: Flow, core: Core) -> site.Core:
    """``core`` as a site tells of it."""
    call = flow.lowest(core.ops)
    order = sum(_counts(flow, op) for op in flow.ops[call.first : _mark(flow, core).index])
    found = _core(flow, core, call.path, order)
    among = sum(_counts(flow, op) for op in flow.ops[call.first : call.last + 1])
    return replace(found, among=max(among, order + 1))


def _core(flow: Flow, core: Core, path: str, order: int) -> site.Core:
    if core.whole:
        heads, features = _whole(flow, core.ops[0])
        return site.Core(path, order, "fused", heads, heads, features, features)
    how = _how(flow, core)
    shapes = flow.record.shapes
    scored, weighed = _orders(flow, core)
    if scored is None or weighed is None or len(shapes[core.k]) > 4:
        why = _unordered(flow, core)
        return site.Core(path, order, how, 1, 1, 0, 0, why)
    q = [shapes[core.q][axis] for axis in scored.query]
    k = [shapes[core.k][axis] for axis in scored.key]
    v = [shapes[core.v][axis] for axis in weighed.value]
    folded = _folded(flow, core.q) if len(q) < 4 else 1
    query_heads = q[1] if len(q) > 3 else folded
    # Positions may have been worked into keys after these were repeated; never into values.
    times = max(_repeats(flow, core.k), _repeats(flow, core.v))
    heads = (k[1] if len(k) > 3 else folded) // times
    obstacle = _lost(flow, core)
    return site.Core(path, order, how, query_heads, max(heads, 1), k[-1], v[-1], obstacle)


def _how(flow: Flow, core: Core) -> Literal["fused", "products", "interface"]:
    """What ``core`` is written in."""
    first, *others = core.ops
    if others:
        return "products"
    return "interface" if flow.kinds[first.index] == "attention_interface" else "fused"


def _orders(flow: Flow, core: Core) -> tuple[Scoring | None, Weighing | None]:
    """How the operands of ``core`` have their axes."""
    shapes = flow.record.shapes
    if len(core.ops) == 1:
        plain: Order = tuple(range(len(shapes[core.k])))
        return Scoring(1, tuple(range(len(shapes[core.q]))), plain), Weighing(1, plain, plain)
    scores, _, product = core.ops
    scored = scoring(_equation(scores), (len(shapes[core.q]), len(shapes[core.k])))
    values_at = operands_of(product, flow.kinds[product.index]).index(core.v)
    return scored, weighing(_equation(product), len(shapes[core.v]), values_at)


def _equation(op: Op) -> str | None:
    return str(op.args[0]) if op.name == "einsum" else None


def _mark(flow: Flow, core: Core) -> Op:
    """The operator by which ``core`` is counted."""
    return next((op for op in core.ops if flow.kinds[op.index] == "softmax"), core.ops[0])


def _counts(flow: Flow, op: Op) -> bool:
    """Whether a core runs as ``op`` does: a fused one, or a softmax of scores."""
    kind = flow.kinds[op.index]
    if kind in ATTENTIONS or kind in WHOLE_ATTENTIONS:
        return True
    return kind == "softmax" and _over_last(flow, op) and _scores(flow, op) is not None


def _over_last(flow: Flow, softmax: Op) -> bool:
    axis = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else None)
    return axis in (-1, len(flow.record.shapes[softmax.outputs[0]]) - 1)


def _scores(flow: Flow, softmax: Op) -> Op | None:
    """The first product that the argument of ``softmax`` comes from by known steps."""
    found: Op | None = None

    shapes = flow.record.shapes

    def stop(value: int, op: Op) -> bool:
        kind = flow.kinds[op.index]
        if kind in VIEWS and shapes[op.inputs[0]][-1:] != shapes[value][-1:]:
            return True
        return kind in SCORED or kind not in STEPS

    for op in flow.backward(softmax.inputs[0], stop):
        if flow.kinds[op.index] in SCORED and (found is None or op.index < found.index):
            found = op
    return found


def _whole(flow: Flow, op: Op) -> tuple[int, int]:
    """Heads and the features of one in `multi_head_attention_forward`."""
    heads = int(op.args[4] if len(op.args) > 4 else op.kwargs["num_heads"])
    return heads, flow.record.shapes[op.inputs[0]][-1] // heads


def _folded(flow: Flow, value: int) -> int:
    """How many heads the first of three axes holds for each of the batch."""
    shapes = flow.record.shapes
    if len(shapes[value]) < 3:
        return 1
    first = shapes[value][0]
    while (op := _step_back(flow, value)) is not None:
        before, after = shapes[op.inputs[0]], shapes[value]
        if len(before) > 3:
            return before[1] if before[0] * before[1] == first else 1
        if flow.kinds[op.index] in RESHAPES and len(before) == 3 and before[-1] > after[-1]:
            heads = before[-1] // after[-1]
            return heads if first % heads == 0 else 1
        value = op.inputs[0]
    return 1


def _repeats(flow: Flow, value: int) -> int:
    """How many times each head was repeated, one beside the other, to get ``value``."""
    shapes = flow.record.shapes
    times, following = 1, shapes[value]
    while (op := _step_back(flow, value)) is not None:
        kind = flow.kinds[op.index]
        before, after = shapes[op.inputs[0]], shapes[value]
        if kind == "repeat_interleave":
            times *= prod(after) // max(prod(before), 1)
        elif kind in ("expand", "expand_as", "broadcast_to", "repeat"):
            times *= _beside(before, after, following)
        elif kind in ("view", "reshape", "flatten"):
            following = after
        value = op.inputs[0]
    return times


def _step_back(flow: Flow, value: int) -> Op | None:
    """The operator that made ``value`` of one other, up to its shape and a number."""
    op = flow.op(value)
    if op is None or not op.inputs:
        return None
    kind = flow.kinds[op.index]
    scaled = kind in ("mul", "div") and len(set(op.inputs)) == 1
    return op if kind in PASSIVE or scaled else None


def _beside(before: tuple[int, ...], after: tuple[int, ...], following: tuple[int, ...]) -> int:
    """How often heads were repeated, unless it was all of them, as one after the other.

    ``following`` is the shape that ``after`` is merged to: heads repeated beside each other are
    merged with the axis before, and all of them with the axis after.
    """
    ends: set[int] = set(accumulate(following, mul))
    times = 1
    padded = (1,) * (len(after) - len(before)) + before
    for axis, (one, many) in enumerate(zip(padded, after, strict=True)):
        start = prod(after[:axis])
        if axis and one == 1 < many and not (start in ends and start * many not in ends):
            times *= many
    return times


def _unordered(flow: Flow, core: Core) -> str:
    """Why the axes of the operands of ``core`` are not batch, heads, length and features."""
    rank = max(len(flow.record.shapes[value]) for value in (core.q, core.k, core.v))
    if rank > 4:
        return f"its keys are cut into blocks, in tensors of {rank} dims: no key is seen by all"
    return f"its products are not of queries with keys, then of weights with values; {_SDPA}"


def _lost(flow: Flow, core: Core) -> str | None:
    """What ``core`` does that cannot be done with new keys, too."""
    if flow.kinds[core.ops[0].index] == "flex_attention":
        return (
            "its model calls flex_attention by itself, and not as transformers' models do; "
            "scaled_dot_product_attention can be changed"
        )
    if len(core.ops) == 1:
        return None
    scores, softmax, product = core.ops
    if flow.kinds[softmax.index] != "softmax":
        return f"its softmax is written out; {_SDPA}"
    if _scores(flow, softmax) is not scores:
        return f"its scores reach the softmax by a step that new keys cannot take; {_SDPA}"
    if not _over_last(flow, softmax):
        return f"its softmax is not over the last axis of its scores; {_SDPA}"

    def stop(op: Op) -> bool:
        return flow.kinds[op.index] not in STEPS

    reached = {op.index for op in flow.forward(softmax.outputs[0], stop)}
    if product.index not in reached:
        return f"its weights reach the values by a step that new keys cannot take; {_SDPA}"
    return None
