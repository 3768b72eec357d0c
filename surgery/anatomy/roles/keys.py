"""What is to be known of an attention core to put keys in front of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Literal

from torch.fx import Node

from surgery.anatomy import attention_core
from surgery.anatomy.graph import (
    argument_of,
    index_of,
    inputs_of,
    kind_of,
    maker_of,
    name_of,
    outputs_of,
    shape_of,
)
from surgery.anatomy.rerun import between, parted
from surgery.anatomy.roles.axes import feature_axis
from surgery.anatomy.roles.cores import RecordedCore
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layouts import Order, Scoring, Weighing, scoring, weighing
from surgery.anatomy.roles.linears import operands_of
from surgery.anatomy.roles.operators import ATTENTIONS, PASSIVE, RESHAPES, WHOLE_ATTENTIONS
from surgery.anatomy.roles.scores import Scores
from surgery.anatomy.roles.softmaxes import FORMS
from surgery.anatomy.roles.trail import among
from surgery.anatomy.roles.trails import MOVES
from surgery.anatomy.roles.windows import windows

_SDPA = 'if the model has it, load it with attn_implementation="sdpa"'


class Keys:
    """Tells of cores how new keys join them; ``scores`` are followed through the record."""

    def __init__(self, flow: Flow, scores: Scores):
        self.flow = flow
        self.scores = scores
        self.trails = scores.softmaxes

    def described(self, core: RecordedCore, query: Node | None) -> attention_core.AttentionCore:
        """``core`` as a site tells of it; ``query`` is the result of the linear for its queries."""
        flow = self.flow
        call = flow.lowest(core.ops)
        mark = core.ops[min(1, len(core.ops) - 1)]
        order = sum(self._counts(op) for op in flow.ops[call.first : index_of(mark)])
        among = sum(self._counts(op) for op in flow.ops[call.first : call.last + 1])
        found = self._sized(core, query, call.path, order)
        return replace(found, among=max(among, order + 1))

    def _sized(
        self, core: RecordedCore, query: Node | None, path: str, order: int
    ) -> attention_core.AttentionCore:
        flow = self.flow
        if core.whole:
            heads, features = _whole(flow, core.ops[0])
            return attention_core.AttentionCore(
                path, order, "fused", heads, heads, features, features
            )
        how = _how(flow, core)
        found = self._windowed(core)
        if found is not None:
            return self._of_windows(core, found, query)
        heads_at = self._heads_at(core, query)
        scored, weighed = self._orders(core, heads_at or 1)
        if scored is None or weighed is None or heads_at is None:
            why = self._unordered(core, heads_at)
            return attention_core.AttentionCore(path, order, how, 1, 1, 0, 0, why)
        q = [shape_of(core.q)[axis] for axis in scored.query]
        k = [shape_of(core.k)[axis] for axis in scored.key]
        v = [shape_of(core.v)[axis] for axis in weighed.value]
        folded = _folded(flow, core.q) if len(q) < 4 else 1
        query_heads = q[1] if len(q) > 3 else folded
        # Positions may have been worked into keys after these were repeated; never into values.
        times = max(_repeats(flow, core.k), _repeats(flow, core.v)) if len(q) < 5 else 1
        heads = max((k[1] if len(k) > 3 else folded) // times, 1)
        lost, fixed = self._lost(core), self._fixed(core)
        sizes = (query_heads, heads, k[-1], v[-1])
        return attention_core.AttentionCore(path, order, how, *sizes, lost, fixed, heads_at)

    def _windowed(self, core: RecordedCore) -> attention_core.Windows | None:
        """The windows of ``core``, where no trail leads from a product to its softmax."""
        strays = len(core.ops) > 1 and core.ops[1] in self.scores.strays
        return windows(self.flow, core) if strays else None

    def _of_windows(
        self, core: RecordedCore, found: attention_core.Windows, query: Node | None
    ) -> attention_core.AttentionCore:
        """``core`` with its windows; each head of queries has keys of its own."""
        flow = self.flow
        call, scores = flow.lowest(core.ops), inputs_of(core.ops[1])[0]
        order = sum(op in self.scores.strays for op in flow.ops[call.first : index_of(core.ops[1])])
        heads_at = self._heads_of(scores, query)
        if heads_at is None:
            why = "its heads cannot be told from its windows"
            return attention_core.AttentionCore(call.path, order, "products", 1, 1, 0, 0, why)
        heads = shape_of(scores)[heads_at]
        sizes = (heads, heads, shape_of(core.q)[-1], shape_of(core.v)[-1])
        why = "its queries see windows of keys"
        return attention_core.AttentionCore(
            call.path, order, "products", *sizes, fixed=why, heads_at=heads_at, windows=found
        )

    def _counts(self, op: Node) -> bool:
        """Whether a core runs as ``op`` does: a fused one, or a softmax of scores."""
        kind = kind_of(op)
        return kind in ATTENTIONS or kind in WHOLE_ATTENTIONS or op in self.trails

    def _heads_at(self, core: RecordedCore, query: Node | None) -> int | None:
        """The axis of the heads in scores of more than four axes, if it can be told."""
        result = outputs_of(core.ops[0])[0]
        if len(core.ops) == 1 or len(shape_of(result)) < 5:
            return 1
        return self._heads_of(result, query)

    def _heads_of(self, result: Node, query: Node | None) -> int | None:
        """The axis of scores whose slices are made of other features of the linear ``query``."""
        if query is None:
            return None
        axis = feature_axis(self.flow, query)
        parts = parted(self.flow.recording, query, axis, result) or []
        total, shape = shape_of(query)[axis], shape_of(result)
        of_heads = [
            at
            for at, part in enumerate(parts[:-1])
            if len(part) < total and len(part) * shape[at] == total
        ]
        return of_heads[0] if len(of_heads) == 1 else None

    def _orders(self, core: RecordedCore, heads_at: int) -> tuple[Scoring | None, Weighing | None]:
        """How the operands of ``core`` have their axes."""
        if len(core.ops) == 1:
            plain: Order = tuple(range(len(shape_of(core.k))))
            if len(plain) > 4:
                return None, None
            return Scoring(1, tuple(range(len(shape_of(core.q)))), plain), Weighing(1, plain, plain)
        scores, _, product = core.ops
        one, other = operands_of(scores, kind_of(scores))
        ranks = (len(shape_of(one)), len(shape_of(other)))
        scored = scoring(_equation(scores), ranks, heads_at)
        weights, values = operands_of(product, kind_of(product))
        ranks = (len(shape_of(weights)), len(shape_of(values)))
        values_at = (weights, values).index(core.v)
        return scored, weighing(_equation(product), ranks, values_at, heads_at)

    def _unordered(self, core: RecordedCore, heads_at: int | None) -> str:
        """Why the axes of the operands of ``core`` are not batch, heads, length and features."""
        rank = max(len(shape_of(value)) for value in (core.q, core.k, core.v))
        if heads_at is None or (len(core.ops) == 1 and rank > 4):
            return f"its heads cannot be told from its blocks, in tensors of {rank} dims"
        return f"its products are not of queries with keys, then of weights with values; {_SDPA}"

    def _lost(self, core: RecordedCore) -> str | None:
        """What ``core`` does that cannot be done with new keys, too."""
        flow = self.flow
        if kind_of(core.ops[0]) == "flex_attention":
            return (
                "its model calls flex_attention by itself, and not as transformers' models do; "
                "scaled_dot_product_attention can be changed"
            )
        if len(core.ops) == 1:
            return None
        scores, softmax, product = core.ops
        form = FORMS.get(kind_of(softmax))
        if form is None:
            return "its weights are no softmax of its scores, so new keys have no share in them"
        trail = self.trails.get(softmax)
        rank = len(shape_of(inputs_of(softmax)[0]))
        if trail is None and not form.applies(softmax.args, softmax.kwargs, rank, ""):
            return f"its softmax is not over the last axis of its scores; {_SDPA}"
        if trail is None or trail.product is not scores:
            return f"its scores reach the softmax by a step that new keys cannot take; {_SDPA}"
        if not among(product, trail.products):
            return f"its weights reach the values by a step that new keys cannot take; {_SDPA}"
        after = between(flow.recording, outputs_of(softmax)[0], outputs_of(product))
        moved = any(kind_of(op) in MOVES for op in (*(trail.scored or ()), *after))
        if rank > 4 and moved:
            return f"its blocks change places between its products; {_SDPA}"
        return None

    def _fixed(self, core: RecordedCore) -> str | None:
        """Why nothing but new keys and values can be given to ``core``."""
        if len(core.ops) == 1:
            return None
        trail = self.trails.get(core.ops[1])
        steps = (trail.scored or []) if trail else []
        # Pegasus-X: scores of the block beside those of the global tokens; GPT-OSS: beside sinks.
        joined = [op for op in steps if kind_of(op) == "cat"]
        # Sinks are the same for all inputs; other scores are of keys beside these.
        if any(not self.flow.constant(v) for op in joined for v in inputs_of(op)[1:]):
            return "its scores are put together from several products"
        form = FORMS.get(kind_of(core.ops[1]))
        if form is not None and form.shares:
            return "its softmax is written out"
        return None


def _how(flow: Flow, core: RecordedCore) -> Literal["fused", "products", "interface"]:
    """What ``core`` is written in."""
    first, *others = core.ops
    if others:
        return "products"
    return "interface" if kind_of(first) == "attention_interface" else "fused"


def _equation(op: Node) -> str | None:
    return str(op.args[0]) if name_of(op) == "einsum" else None


def _whole(flow: Flow, op: Node) -> tuple[int, int]:
    """Heads and the features of one in `multi_head_attention_forward`."""
    heads = int(argument_of(op, 4, "num_heads"))
    return heads, shape_of(inputs_of(op)[0])[-1] // heads


def _folded(flow: Flow, value: Node) -> int:
    """How many heads the first of three axes holds for each of the batch."""
    if len(shape_of(value)) < 3:
        return 1
    first = shape_of(value)[0]
    while (op := _step_back(flow, value)) is not None:
        before, after = shape_of(inputs_of(op)[0]), shape_of(value)
        # BLOOM, LED: [batch, heads, length, features] → [batch · heads, length, features].
        if len(before) > 3:
            return before[1] if before[0] * before[1] == first else 1
        # FSMT: [length, batch, heads · features] → [length, batch · heads, features].
        if kind_of(op) in RESHAPES and len(before) == 3 and before[-1] > after[-1]:
            heads = before[-1] // after[-1]
            return heads if first % heads == 0 else 1
        value = inputs_of(op)[0]
    return 1


def _repeats(flow: Flow, value: Node) -> int:
    """How many times each head was repeated, one beside the other, to get ``value``."""
    times, following = 1, shape_of(value)
    while (op := _step_back(flow, value)) is not None:
        kind = kind_of(op)
        before, after = shape_of(inputs_of(op)[0]), shape_of(value)
        if kind == "repeat_interleave":
            times *= prod(after) // max(prod(before), 1)
        elif kind in ("expand", "expand_as", "broadcast_to", "repeat"):
            times *= _beside(before, after, following)
        elif kind in ("view", "reshape", "flatten"):
            following = after
        value = inputs_of(op)[0]
    return times


def _step_back(flow: Flow, value: Node) -> Node | None:
    """The operator that made ``value`` of one other, up to its shape and a number."""
    op = maker_of(value)
    if op is None or not inputs_of(op):
        return None
    kind = kind_of(op)
    scaled = kind in ("mul", "div") and len(set(inputs_of(op))) == 1
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
