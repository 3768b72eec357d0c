"""Feed-forwards: linear, nonlinearity, linear, on a branch beside a residual."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from torch.fx import Node

from surgery.anatomy.graph import inputs_of, kind_of, maker_of, outputs_of, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear, RecordedLinears
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
    """The linears of one feed-forward; ``roles`` by the linear's operator.

    ``product`` is the operator that multiplies the result of ``down`` with a gate, if one does.
    """

    down: RecordedLinear
    roles: Mapping[Node, str]
    source: Node
    product: Node | None = None


def feed_forwards(
    flow: Flow, linears: RecordedLinears, sums: list[Sum], taken: Collection[Node]
) -> Iterator[FeedForward]:
    """The feed-forwards whose result joins a residual; ``taken`` linears are an attention's o."""
    by_result = {flow.same(linear.result): linear for linear in linears.values()}
    seen: set[Node] = set()
    whole = {item.result for item in sums}
    for item in sums:
        for branch in item.branches:
            for end in branch_ends(flow, branch, whole):
                # RWKV: the receptance gates what its feed-forward gives.
                product = _gated(flow, end)
                down = by_result.get(flow.same(product[1]) if product else end)
                if down is None or down.op in seen or down.op in taken:
                    continue
                seen.add(down.op)
                found = feed_forward(flow, linears, down)
                if found is None and (inner := by_result.get(flow.same(down.source))) is not None:
                    # Zamba: projected once more before it joins.
                    found = feed_forward(flow, linears, inner)
                if found is not None and flow.depends(found.source, _base(flow, item.skip)):
                    yield replace(found, product=product[0]) if product else found


def _gated(flow: Flow, value: Node) -> tuple[Node, Node] | None:
    """The product that ``value`` is of an activation's result and another value, and this one."""
    product = maker_of(value)
    if product is None or kind_of(product) != "mul" or len(inputs_of(product)) != 2:
        return None
    shapes = {shape_of(factor) for factor in inputs_of(product)}
    makers = [maker_of(factor) for factor in inputs_of(product)]
    bent = [m is not None and kind_of(m) in ACTIVATIONS for m in makers]
    if len(shapes) > 1 or bent.count(True) != 1:
        return None
    return product, inputs_of(product)[bent.index(False)]


def _base(flow: Flow, skip: Node) -> Node:
    return next(iter(branch_ends(flow, skip)))


def feed_forward(flow: Flow, linears: RecordedLinears, down: RecordedLinear) -> FeedForward | None:
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
    return FeedForward(down, {**roles, down.op: "down"}, firsts[0].source)


def _entries(
    flow: Flow, linears: RecordedLinears, found: list[RecordedLinear]
) -> list[RecordedLinear]:
    """Each weight once (experts run in turns), and without low-rank paths beside another."""
    firsts = list({linear.weight: linear for linear in reversed(found)}.values())[::-1]
    inner = {f.weight: linears.by_result.get(flow.same(f.source)) for f in firsts}
    direct = {flow.same(f.source) for f in firsts if inner[f.weight] is None}
    return [
        first
        for first in firsts
        if (before := inner[first.weight]) is None or flow.same(before.source) not in direct
    ]


@dataclass
class _Reached:
    linears: set[Node]
    bent: bool
    convolved: bool


def _behind(
    flow: Flow, linears: RecordedLinears, down: RecordedLinear, *, through: bool
) -> _Reached | None:
    """The nearest linears before ``down``; with ``through`` False only those no activation bends.

    None if there is anything that mixes positions on the way: then this is no feed-forward.
    """
    found = _Reached(set(), False, False)
    allowed = PASSIVE | POINTWISE | NORMS | STATISTICS | {"cat"}

    def stop(_: Node, op: Node) -> bool:
        linear = linears.get(op)
        if linear is not None:
            return not linear.depthwise
        if not flow.is_number(outputs_of(op)[0]):
            return True
        return not through and kind_of(op) in BENDS

    for op in flow.backward(down.source, stop):
        linear = linears.get(op)
        kind = kind_of(op)
        if outputs_of(op) and not flow.is_number(outputs_of(op)[0]):
            continue  # which side of a bend each value is on
        if outputs_of(op) and flow.constant(outputs_of(op)[0]):
            continue
        if linear is not None and not linear.depthwise:
            found.linears.add(op)
        elif linear is not None:
            if kind != "conv2d":
                return None
            found.convolved = True
        elif kind not in allowed:
            return None
        elif kind in BENDS:
            found.bent = True
    return found


def _is_plain(flow: Flow, linear: RecordedLinear) -> bool:
    # Between convolutions, a depthwise one makes an inverted bottleneck, not a feed-forward.
    return not kind_of(linear.op).startswith("conv")


def _roles(
    flow: Flow, firsts: list[RecordedLinear], down: RecordedLinear, straight: set[Node]
) -> dict[Node, str] | None:
    if len(firsts) == 1:
        axis = features_axis(flow, firsts[0])
        fused = shape_of(firsts[0].result)[axis] == 2 * shape_of(down.source)[axis]
        return {firsts[0].op: "gate_up" if fused else "up"}
    if len(firsts) == 2:
        ups = [first for first in firsts if first.op in straight]
        gates = [first for first in firsts if first.op not in straight]
        if len(ups) == 1:
            return {ups[0].op: "up", gates[0].op: "gate"}
        if len(ups) == 2:
            # mT5: a gelu written out leads past its own bend, too; the gate is the one that has one.
            return _written_out(flow, firsts)
    return None


def _written_out(flow: Flow, firsts: list[RecordedLinear]) -> dict[Node, str] | None:
    bent = [
        first
        for first in firsts
        if any(
            kind_of(op) in BENDS
            for op in flow.forward(
                outputs_of(first.op)[0],
                lambda op: kind_of(op) not in PASSIVE | POINTWISE,
            )
        )
    ]
    if len(bent) != 1:
        return None
    return {first.op: "gate" if first in bent else "up" for first in firsts}


def features_axis(flow: Flow, linear: RecordedLinear) -> int:
    """The axis along which the result of ``linear`` has its features."""
    kind = kind_of(linear.op)
    return -int(kind[4]) - 1 if kind.startswith("conv") and kind[4:5].isdigit() else -1
