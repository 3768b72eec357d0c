"""What a follower tells of nodes: where the scores of each softmax come from, and weights go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch.fx import Node

from surgery.anatomy.graph import index_of, inputs_of, kind_of, outputs_of, readers, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.follower import Follower
from surgery.anatomy.roles.softmaxes import FORMS
from surgery.anatomy.roles.trail import FunctionCall, Trail
from surgery.anatomy.roles.trails import SCORED


class Noted:
    """A value of a graph. ``last`` is the number of the last call that reads it, or less than any.

    ``shape`` is None where nobody has run the graph.
    """

    __slots__ = ("last", "node", "shape")

    def __init__(self, node: Node, shape: Sequence[int] | None, last: int):
        self.node = node
        self.shape = shape
        self.last = last


NotedCall = tuple[FunctionCall[Noted], list[Noted]]
"""A node that calls a function, and the values that it gives."""


class Scores(Follower[Noted]):
    """The trails of a graph by the node that makes weights of the scores.

    Products and steps of these are nodes. ``ends`` are those that make weights of a softmax which
    is written out, with the one that gave its total. ``strays`` are the softmaxes of what has come from no
    product by known steps. ``weights`` are the steps from a softmax to each product with values.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        kind: Callable[[Node], str],
        noted: Callable[[Node], NotedCall],
    ):
        super().__init__()
        self.softmaxes: dict[Node, Trail[Noted]] = {}
        self.totals: dict[Trail[Noted], Node] = {}
        self.ends: dict[Node, Node] = {}
        self.strays: set[Node] = set()
        self.weights: dict[Node, list[Node]] = {}
        for number, node in enumerate(nodes):
            # Where nothing is followed, only these begin anything.
            if not self.trails and kind(node) not in SCORED and kind(node) not in FORMS:
                continue
            call, self.outputs = noted(node)
            self.follow(call)
            # What nobody reads any more leads nowhere.
            self.trails = [t for t in self.trails if any(p.last > number for p, *_ in t.places)]

    def run(self, call: FunctionCall[Noted]) -> list[Noted]:
        return self.outputs

    def value(self, result: list[Noted]) -> Noted | None:
        # Others are the same memory under other names.
        return result[0] if result else None

    def values(self, result: list[Noted]) -> list[Noted]:
        return result

    def softened(self, trail: Trail[Noted], call: FunctionCall[Noted], before: Noted) -> Noted:
        self.softmaxes[call.function] = trail
        self.totals[trail] = call.function
        return self.outputs[0]

    def ended(self, trail: Trail[Noted], call: FunctionCall[Noted]) -> None:
        self.ends[call.function] = self.totals[trail]

    def weighed(self, trail: Trail[Noted], call: FunctionCall[Noted], weights: Noted) -> Noted:
        trail.products.append(call.function)
        self.weights[call.function] = trail.steps(weights)
        self.begin(call, self.outputs[0])
        return self.outputs[0]

    def strayed(self, call: FunctionCall[Noted]) -> None:
        if call.kind == "softmax":
            self.strays.add(call.function)

    def product(self, call: FunctionCall[Noted]) -> Node:
        return call.function

    def step(self, call: FunctionCall[Noted], before: Noted, result: Noted) -> Node:
        return call.function


def recorded_scores(flow: Flow) -> Scores:
    """The trails of a recording."""
    values: dict[Node, Noted] = {}

    def value(node: Node) -> Noted:
        if node not in values:
            last = max(map(index_of, readers(node)), default=-1)
            values[node] = Noted(node, shape_of(node), last)
        return values[node]

    def noted(op: Node) -> NotedCall:
        out = op.kwargs.get("out")
        given = [value(v) for v in inputs_of(op) if v is not out or out in op.args]
        call = FunctionCall(kind_of(op), op, op.args, op.kwargs, given)
        return call, [value(v) for v in outputs_of(op)]

    return Scores(flow.ops, kind_of, noted)
