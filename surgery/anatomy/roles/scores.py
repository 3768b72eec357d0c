"""Which product the scores of each softmax come from, told as it is when attention is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.trails import MOVES, SCORED, VIEWS, is_step, softens


@dataclass
class Trail:
    """One product, and the steps from it to the softmax of its scores.

    ``values`` are where it has come to: the last one, and those that it is a view of, each with
    the number of steps up to there.
    """

    product: Op
    values: dict[int, int]
    steps: list[Op] = field(default_factory=list[Op])

    def take(self, op: Op, kind: str, before: int) -> None:
        """Go on by a step from the value ``before``; a view leaves what it is of to be read."""
        taken = self.values[before]
        del self.steps[taken:]
        kept = {value: n for value, n in self.values.items() if n <= taken}
        self.values = kept if kind in VIEWS | MOVES else {}
        self.steps.append(op)
        self.values[op.outputs[0]] = taken + 1


def scores(flow: Flow) -> dict[int, Trail]:
    """The trails of a record, by the index of the operator that makes weights of the scores."""
    found: dict[int, Trail] = {}
    at: dict[int, list[Trail]] = {}
    for op, kind in zip(flow.ops, flow.kinds, strict=True):
        if not op.outputs:
            continue
        trail, before = _first(at, op.inputs)
        if trail is not None and softens(kind, op.args, op.kwargs, len(flow.record.shapes[before])):
            found[op.index] = trail
            for value in trail.values:
                at[value].remove(trail)
            continue
        if kind in SCORED:
            at.setdefault(op.outputs[0], []).append(Trail(op, {op.outputs[0]: 0}))
        if trail is not None and _is_step(flow, op, kind, before):
            for value in trail.values:
                at[value].remove(trail)
            trail.take(op, kind, before)
            for value in trail.values:
                at.setdefault(value, []).append(trail)
    return found


def _first(at: dict[int, list[Trail]], inputs: Sequence[int]) -> tuple[Trail | None, int]:
    """The trail of the earliest product that has come to one of ``inputs``, and to which."""
    there = [(trail, value) for value in inputs for trail in at.get(value, ())]
    return min(there, key=lambda pair: pair[0].product.index, default=(None, -1))


def _is_step(flow: Flow, op: Op, kind: str, before: int) -> bool:
    shapes = flow.record.shapes
    return is_step(kind, op.args, op.kwargs, shapes[before], shapes[op.outputs[0]])
