"""Feed-forward: linear → nonlinearity → linear, beside a residual."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.anatomy.graph import Graph, Linear
from surgery.anatomy.operators import Kind, plain
from surgery.anatomy.record import Op
from surgery.anatomy.walk import LIGHT, back, reaches, residual_sum

INSIDE: frozenset[Kind] = LIGHT | {"norm", "activation", "choice"}


@dataclass(frozen=True)
class FeedForward:
    """``fused`` tells a linear that is both gate and up, cut in two after."""

    up: tuple[Linear, ...]
    gate: tuple[Linear, ...]
    fused: tuple[Linear, ...]
    down: Linear
    sum: int
    stream: int

    @property
    def first(self) -> tuple[Linear, ...]:
        found = {linear.op: linear for linear in (*self.up, *self.gate, *self.fused)}
        return tuple(found[index] for index in sorted(found))


@dataclass
class _Branch:
    """How one linear's output gets to the down projection."""

    straight: bool = False
    crossing: bool = False
    cut: bool = False


def feed_forwards(graph: Graph, taken: set[int]) -> list[FeedForward]:
    """All feed-forward blocks in the order they ran; ``taken`` are the linears of attention."""
    found = [
        block
        for index, linear in graph.linears.items()
        if index not in taken and (block := _ending_in(graph, linear, taken))
    ]
    # The inner linear of a chain of three is no end of its own.
    return found


def _ending_in(graph: Graph, down: Linear, taken: set[int]) -> FeedForward | None:
    branches = _branches(graph, down)
    if branches is None or not any(branch.crossing for branch in branches.values()):
        return None
    firsts = [graph.linears[i] for i in branches if i not in taken and i != down.op]
    crossing = next((x for x in firsts if branches[x.op].crossing), None)
    if crossing is None:
        return None
    joined = residual_sum(graph, down.output, crossing.input)
    if joined is None:
        return None
    total, stream = joined
    own = [x for x in firsts if reaches(graph, stream, x.input)]
    up, gate, fused = _told_apart(graph, down, own, branches)
    return FeedForward(up, gate, fused, down, total, stream) if own else None


def _branches(graph: Graph, down: Linear) -> dict[int, _Branch] | None:
    """The linears upstream of ``down``, by way of nonlinearities; None if positions are mixed."""
    found: dict[int, _Branch] = {}
    seen: set[tuple[int, bool, bool]] = set()
    waiting = [(down.input, False, False)]
    while waiting:
        value, crossed, cut = waiting.pop()
        op = graph.maker(value)
        if op is None or (op.index, crossed, cut) in seen:
            continue
        seen.add((op.index, crossed, cut))
        kind = graph.kinds[op.index]
        if kind == "linear":
            branch = found.setdefault(op.index, _Branch())
            branch.crossing |= crossed
            branch.straight |= not crossed
            branch.cut |= cut
            continue
        if kind in ("core", "mixing", "softmax", "product") or not _pointwise(graph, op):
            return None
        if kind not in INSIDE and kind != "conv":
            continue
        crossed |= kind == "activation"
        cut |= _cuts(graph, op)
        waiting += [(read, crossed, cut) for read in op.inputs]
    return found


def _pointwise(graph: Graph, op: Op) -> bool:
    """Convolutions in a feed-forward are depthwise over images; over time they are mixers."""
    if graph.kinds[op.index] != "conv":
        return True
    weight = graph.record.shapes[op.inputs[1]] if len(op.inputs) > 1 else ()
    return plain(op.name) == "conv2d" and len(weight) == 4 and weight[1] == 1


def _cuts(graph: Graph, op: Op) -> bool:
    """Whether ``op`` hands on a part of the features only."""
    name = plain(op.name)
    if name == "glu":
        return True
    if name not in ("chunk", "split", "getitem", "narrow", "unbind", "tensor_split", "slice"):
        return False
    shapes = graph.record.shapes
    before, after = shapes[op.inputs[0]], shapes[op.outputs[0]]
    return bool(before and after) and before[-1] != after[-1]


def _told_apart(
    graph: Graph, down: Linear, firsts: list[Linear], branches: dict[int, _Branch]
) -> tuple[tuple[Linear, ...], tuple[Linear, ...], tuple[Linear, ...]]:
    """Up, gate, and fused: the gate is what crosses the nonlinearity while another does not."""
    crossing = [x for x in firsts if branches[x.op].crossing]
    straight = [x for x in firsts if not branches[x.op].crossing]
    if straight:
        return tuple(straight), tuple(crossing), ()
    if len(crossing) > 1:
        return (), (), ()
    branch = branches[crossing[0].op] if crossing else _Branch()
    shapes = graph.record.shapes
    wide = crossing and shapes[crossing[0].output][-1] == 2 * shapes[down.input][-1]
    if branch.cut and wide:
        return (), (), tuple(crossing)
    return tuple(crossing), (), ()
