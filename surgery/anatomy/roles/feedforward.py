"""Feed-forwards: linear, nonlinearity, linear, on a branch beside a residual."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear
from surgery.anatomy.roles.operators import (
    ACTIVATIONS,
    BENDS,
    NORMS,
    PASSIVE,
    POINTWISE,
    STATISTICS,
)
from surgery.anatomy.roles.residual import Sum, branch_ends


@dataclass(frozen=True)
class FeedForward:
    """The linears of one feed-forward; ``roles`` by the index of the linear's operator.

    ``product`` is the operator that multiplies the result of ``down`` with a gate, if one does.
    """

    down: Linear
    roles: Mapping[int, str]
    source: int
    product: Op | None = None


def feed_forwards(
    flow: Flow, linears: Mapping[int, Linear], sums: list[Sum], taken: Collection[int]
) -> Iterator[FeedForward]:
    """The feed-forwards whose result joins a residual; ``taken`` linears are an attention's o."""
    by_result = {flow.same(linear.result): linear for linear in linears.values()}
    seen: set[int] = set()
    whole = {item.result for item in sums}
    for item in sums:
        for branch in item.branches:
            for end in branch_ends(flow, branch, whole):
                product = _gated(flow, end)
                down = by_result.get(flow.same(product[1]) if product else end)
                if down is None or down.op.index in seen or down.op.index in taken:
                    continue
                seen.add(down.op.index)
                found = feed_forward(flow, linears, down)
                if found is None and (inner := by_result.get(flow.same(down.source))) is not None:
                    # Projected once more before it joins.
                    found = feed_forward(flow, linears, inner)
                if found is not None and flow.depends(found.source, _base(flow, item.skip)):
                    yield replace(found, product=product[0]) if product else found


def _gated(flow: Flow, value: int) -> tuple[Op, int] | None:
    """The product that ``value`` is of an activation's result and another value, and this one."""
    product = flow.op(value)
    if product is None or flow.kinds[product.index] != "mul" or len(product.inputs) != 2:
        return None
    shapes = {flow.record.shapes[factor] for factor in product.inputs}
    makers = [flow.op(factor) for factor in product.inputs]
    bent = [m is not None and flow.kinds[m.index] in ACTIVATIONS for m in makers]
    if len(shapes) > 1 or bent.count(True) != 1:
        return None
    return product, product.inputs[bent.index(False)]


def _base(flow: Flow, skip: int) -> int:
    return next(iter(branch_ends(flow, skip)))


def feed_forward(flow: Flow, linears: Mapping[int, Linear], down: Linear) -> FeedForward | None:
    """What lies behind ``down``, if that is linears, something pointwise with a bend, no more."""
    if not down.pointwise:
        return None
    reached = _behind(flow, linears, down, through=True)
    if reached is None or not reached.linears or not reached.bent:
        return None
    firsts = _entries(flow, linears, [linears[index] for index in sorted(reached.linears)])
    sources = {flow.same(first.source) for first in firsts}
    if len(sources) > 1 or not all(first.pointwise for first in firsts):
        return None
    if reached.convolved and not all(_is_plain(flow, x) for x in (*firsts, down)):
        return None
    straight = _behind(flow, linears, down, through=False)
    roles = _roles(flow, firsts, down, straight.linears if straight else set())
    if roles is None:
        return None
    return FeedForward(down, {**roles, down.op.index: "down"}, firsts[0].source)


def _entries(flow: Flow, linears: Mapping[int, Linear], found: list[Linear]) -> list[Linear]:
    """Each weight once (experts run in turns), and without low-rank paths beside another."""
    firsts = list({linear.weight: linear for linear in reversed(found)}.values())[::-1]
    by_result = {linear.result: linear for linear in linears.values()}
    inner = {f.weight: by_result.get(flow.same(f.source)) for f in firsts}
    direct = {flow.same(f.source) for f in firsts if inner[f.weight] is None}
    return [
        first
        for first in firsts
        if (before := inner[first.weight]) is None or flow.same(before.source) not in direct
    ]


@dataclass
class _Reached:
    linears: set[int]
    bent: bool
    convolved: bool


def _behind(
    flow: Flow, linears: Mapping[int, Linear], down: Linear, *, through: bool
) -> _Reached | None:
    """The nearest linears before ``down``; with ``through`` False only those no activation bends.

    None if there is anything that mixes positions on the way: then this is no feed-forward.
    """
    found = _Reached(set(), False, False)
    allowed = PASSIVE | POINTWISE | NORMS | STATISTICS | {"cat"}

    def stop(_: int, op: Op) -> bool:
        linear = linears.get(op.index)
        if linear is not None:
            return not linear.depthwise
        if not flow.is_number(op.outputs[0]):
            return True
        return not through and flow.kinds[op.index] in BENDS

    for op in flow.backward(down.source, stop):
        linear = linears.get(op.index)
        kind = flow.kinds[op.index]
        if op.outputs and not flow.is_number(op.outputs[0]):
            continue  # which side of a bend each value is on
        if op.outputs and flow.constant(op.outputs[0]):
            continue
        if linear is not None and not linear.depthwise:
            found.linears.add(op.index)
        elif linear is not None:
            if kind != "conv2d":
                return None
            found.convolved = True
        elif kind not in allowed:
            return None
        elif kind in BENDS:
            found.bent = True
    return found


def _is_plain(flow: Flow, linear: Linear) -> bool:
    # Between convolutions, a depthwise one makes an inverted bottleneck, not a feed-forward.
    return not flow.kinds[linear.op.index].startswith("conv")


def _roles(
    flow: Flow, firsts: list[Linear], down: Linear, straight: set[int]
) -> dict[int, str] | None:
    shapes = flow.record.shapes
    if len(firsts) == 1:
        axis = features_axis(flow, firsts[0])
        fused = shapes[firsts[0].result][axis] == 2 * shapes[down.source][axis]
        return {firsts[0].op.index: "gate_up" if fused else "up"}
    if len(firsts) == 2:
        ups = [first for first in firsts if first.op.index in straight]
        gates = [first for first in firsts if first.op.index not in straight]
        if len(ups) == 1:
            return {ups[0].op.index: "up", gates[0].op.index: "gate"}
        if len(ups) == 2:
            # A gelu written out leads past its own bend, too; the gate is the one that has one.
            return _written_out(flow, firsts)
    return None


def _written_out(flow: Flow, firsts: list[Linear]) -> dict[int, str] | None:
    bent = [
        first
        for first in firsts
        if any(
            flow.kinds[op.index] in BENDS
            for op in flow.forward(
                first.op.outputs[0],
                lambda op: flow.kinds[op.index] not in PASSIVE | POINTWISE,
            )
        )
    ]
    if len(bent) != 1:
        return None
    return {first.op.index: "gate" if first in bent else "up" for first in firsts}


def features_axis(flow: Flow, linear: Linear) -> int:
    """The axis along which the result of ``linear`` has its features."""
    kind = flow.kinds[linear.op.index]
    return -int(kind[4]) - 1 if kind.startswith("conv") and kind[4:5].isdigit() else -1
