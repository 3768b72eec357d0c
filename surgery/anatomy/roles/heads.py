"""Both ends of a model: the tables its input is looked up in, and the linears it ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear
from surgery.anatomy.roles.operators import PASSIVE
from surgery.anatomy.roles.padding import pads
from surgery.anatomy.roles.residual import unscaled

_KEPT = PASSIVE | {"masked_fill", "setitem", "clamp", "clamp_min"}
"""What leaves most ids as they were given."""


def embeddings(flow: Flow) -> Iterator[str]:
    """The modules that look up what the model was given; positions are not given."""
    for op, kind in zip(flow.ops, flow.kinds, strict=True):
        if kind != "embedding":
            continue
        ids = [v for v in op.inputs if not flow.record.dtypes[v].is_floating_point]
        call = flow.record.calls[op.call]
        module = flow.paths.modules.get(call.path)
        own = module is not None and "weight" in module._parameters  # pyright: ignore[reportPrivateUsage]
        if own and any(_given(flow, v) for v in ids):
            yield call.path


def _given(flow: Flow, ids: int) -> bool:
    """Whether the model was given ``ids``, up to some that it puts another in place of."""
    op = flow.op(ids)
    if op is None:
        return ids in flow.record.arguments
    kind = flow.kinds[op.index]
    if kind == "where":
        return any(_given(flow, value) for value in op.inputs[1:])
    left = (kind in _KEPT and bool(op.inputs)) or pads(flow, op)
    return left and _given(flow, op.inputs[0])


def heads(flow: Flow, linears: Mapping[int, Linear]) -> Iterator[Linear]:
    """The linears whose result the model returns, up to its shape, its scale and a soft cap."""
    by_result = {flow.same(linear.result): linear for linear in linears.values()}
    for _, value in flow.record.calls[0].outputs:
        linear = by_result.get(flow.same(_uncapped(flow, value)))
        if linear is not None:
            yield linear


def _uncapped(flow: Flow, value: int) -> int:
    while True:
        before = unscaled(flow, flow.stripped(value, PASSIVE))
        op = flow.op(before)
        if op is not None and flow.kinds[op.index] == "tanh" and op.inputs:
            scaled = flow.op(op.inputs[0])
            if scaled is not None and flow.kinds[scaled.index] in ("div", "mul"):
                before = unscaled(flow, op.inputs[0])
        if before == value:
            return value
        value = before
