"""What a follower tells of a recording: where the scores of each softmax come from, and weights go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from surgery.anatomy.graph import index_of, inputs_of, kind_of, outputs_of, readers, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.follower import Follower, FunctionCall, Trail
from surgery.anatomy.roles.softmaxes import FORMS
from surgery.anatomy.roles.trails import SCORED


class Noted:
    """A value of a recording."""

    __slots__ = ("node", "shape")

    def __init__(self, node: Node):
        self.node = node
        self.shape = shape_of(node)


class Scores(Follower[Noted]):
    """The trails of a recording by the operator that makes weights of the scores.

    Products and steps of these are operators. ``ends`` are those that make weights of a softmax which
    is written out, with the one that gave its total. ``strays`` are the softmaxes of what has come from no
    product by known steps.
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.softmaxes: dict[Node, Trail[Noted]] = {}
        self.totals: dict[Trail[Noted], Node] = {}
        self.ends: dict[Node, Node] = {}
        self.strays: set[Node] = set()
        self.noted: dict[Node, Noted] = {}
        for op in flow.ops:
            # Where nothing is followed, only these begin anything.
            if self.trails or kind_of(op) in SCORED or kind_of(op) in FORMS:
                self.read(op)

    def read(self, op: Node) -> None:
        """Follow what comes next."""
        out = op.kwargs.get("out")
        given = self.all_noted(v for v in inputs_of(op) if v is not out or out in op.args)
        self.outputs = self.all_noted(outputs_of(op))
        self.follow(FunctionCall(kind_of(op), op, op.args, op.kwargs, given))
        # What nobody reads any more leads nowhere.
        self.trails = [trail for trail in self.trails if self.is_read(trail, index_of(op))]

    def all_noted(self, values: Iterable[Node]) -> list[Noted]:
        """What stands for ``values``, the same each time."""
        return [self.noted.setdefault(value, Noted(value)) for value in values]

    def is_read(self, trail: Trail[Noted], index: int) -> bool:
        """Whether an operator behind the one at ``index`` reads a place of ``trail``."""
        read = (reader for place, *_ in trail.places for reader in readers(place.node))
        return any(index_of(reader) > index for reader in read)

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
        self.begin(call, self.outputs[0])
        return self.outputs[0]

    def strayed(self, call: FunctionCall[Noted]) -> None:
        if call.kind == "softmax":
            self.strays.add(call.function)

    def product(self, call: FunctionCall[Noted]) -> Node:
        return call.function

    def step(self, call: FunctionCall[Noted], before: Noted, result: Noted) -> Any:
        return call.function
