"""What a follower tells of a record: where the scores of each softmax come from, and weights go."""

from __future__ import annotations

from typing import Any

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.follower import Follower, FunctionCall, Trail


class Noted:
    """A value of a record."""

    __slots__ = ("number", "shape")

    def __init__(self, number: int, shape: tuple[int, ...]):
        self.number = number
        self.shape = shape


class Scores(Follower[Noted]):
    """The trails of a record by the index of the operator that makes weights of the scores.

    Products and steps of these are operators. ``ends`` are those that make weights of a softmax which
    is written out, with the one that gave its total. ``strays`` are the softmaxes of what has come from no
    product by known steps.
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.softmaxes: dict[int, Trail[Noted]] = {}
        self.totals: dict[Trail[Noted], Op] = {}
        self.ends: dict[int, Op] = {}
        self.strays: set[int] = set()
        record = flow.record
        values = [Noted(number, shape) for number, shape in enumerate(record.shapes)]
        self.last = [max(readers, default=-1) for readers in record.consumers]
        for op, kind in zip(flow.ops, flow.kinds, strict=True):
            given = [values[number] for number in op.inputs]
            self.outputs = [values[number] for number in op.outputs]
            self.follow(FunctionCall(kind, op, op.args, op.kwargs, given))
            # What nobody reads any more leads nowhere.
            self.trails = [trail for trail in self.trails if self.is_read(trail, op.index)]

    def is_read(self, trail: Trail[Noted], index: int) -> bool:
        """Whether an operator behind the one at ``index`` reads a place of ``trail``."""
        return any(self.last[place.number] > index for place, *_ in trail.places)

    def run(self, call: FunctionCall[Noted]) -> list[Noted]:
        return self.outputs

    def value(self, result: list[Noted]) -> Noted | None:
        # Others are the same memory under other names.
        return result[0] if result else None

    def softened(self, trail: Trail[Noted], call: FunctionCall[Noted], before: Noted) -> Noted:
        self.softmaxes[call.function.index] = trail
        self.totals[trail] = call.function
        return self.outputs[0]

    def ended(self, trail: Trail[Noted], call: FunctionCall[Noted], weights: Noted) -> None:
        self.ends[call.function.index] = self.totals[trail]

    def weighed(self, trail: Trail[Noted], call: FunctionCall[Noted], weights: Noted) -> Noted:
        trail.products.append(call.function)
        self.begin(call, self.outputs[0])
        return self.outputs[0]

    def strayed(self, call: FunctionCall[Noted]) -> None:
        if call.kind == "softmax":
            self.strays.add(call.function.index)

    def product(self, call: FunctionCall[Noted]) -> Op:
        return call.function

    def step(self, call: FunctionCall[Noted], before: Noted, result: Noted) -> Any:
        return call.function
