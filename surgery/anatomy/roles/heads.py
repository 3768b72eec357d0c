"""Both ends of a model: the tables its input is looked up in, and the linears it ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.fx import Node

from surgery.anatomy.graph import call_of, dtype_of, inputs_of, kind_of, maker_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear
from surgery.anatomy.roles.operators import PASSIVE
from surgery.anatomy.roles.padding import pads
from surgery.anatomy.roles.residual import unscaled

_KEPT = PASSIVE | {"masked_fill", "setitem", "clamp", "clamp_min"}
"""What leaves most ids as they were given."""


def embeddings(flow: Flow) -> Iterator[str]:
    """The modules that look up what the model was given; positions are not given."""
    for op in flow.ops:
        kind = kind_of(op)
        if kind != "embedding":
            continue
        ids = [v for v in inputs_of(op) if not dtype_of(v).is_floating_point]
        call = flow.recording.calls[call_of(op)]
        module = flow.paths.modules.get(call.path)
        own = module is not None and "weight" in module._parameters  # pyright: ignore[reportPrivateUsage]
        if own and any(_given(flow, v) for v in ids):
            yield call.path


def _given(flow: Flow, ids: Node) -> bool:
    """Whether the model was given ``ids``, up to some that it puts another in place of."""
    op = maker_of(ids)
    if op is None:
        return ids in flow.recording.arguments
    kind = kind_of(op)
    # Gemma 3n: ids of another modality are looked up as 0.
    if kind == "where":
        return any(_given(flow, value) for value in inputs_of(op)[1:])
    left = (kind in _KEPT and bool(inputs_of(op))) or pads(flow, op)
    return left and _given(flow, inputs_of(op)[0])


def heads(flow: Flow, linears: Mapping[Node, RecordedLinear]) -> Iterator[RecordedLinear]:
    """The linears whose result the model returns, up to its shape, its scale and a soft cap."""
    by_result = {flow.same(linear.result): linear for linear in linears.values()}
    for _, value in flow.recording.calls[0].outputs:
        linear = by_result.get(flow.same(_uncapped(flow, value)))
        if linear is not None:
            yield linear


def _uncapped(flow: Flow, value: Node) -> Node:
    while True:
        before = unscaled(flow, flow.stripped(value, PASSIVE))
        op = maker_of(before)
        # Gemma 2: cap · tanh(scores / cap)
        if op is not None and kind_of(op) == "tanh" and inputs_of(op):
            scaled = maker_of(inputs_of(op)[0])
            if scaled is not None and kind_of(scaled) in ("div", "mul"):
                before = unscaled(flow, inputs_of(op)[0])
        if before == value:
            return value
        value = before
