"""Where a value is in a grouped convolution, each group of which has patches of its own."""

from __future__ import annotations

from typing import Literal

from surgery.rules.expression import OUT, Expression
from surgery.rules.primitives import PRIMITIVES

Place = Literal["groups", "outputs", "everywhere"]


class Groups:
    """The places of the expressions of one site.

    What has the result's dim is there once for each output, made from its group's patches; what
    else is made of the input once in each group; what is made of outputs once for all.
    """

    def __init__(self) -> None:
        self._known: dict[Expression, Place] = {}

    def place(self, e: Expression) -> Place:
        if e not in self._known:
            self._known[e] = self._place(e)
        return self._known[e]

    def _place(self, e: Expression) -> Place:
        if e.op == "operand":
            return "groups" if e.name == "x" else "outputs"
        if e.op in ("base", "host"):
            return "outputs"
        if e.op == "spread":
            return self.place(e.arguments[1])
        places = [self.place(a) for a in e.arguments if a.varies]
        if e.shape and e.shape[-1] == OUT:
            return "outputs"
        apart = _mixes_features(e) and "outputs" in places
        if "groups" in places and (apart or "outputs" not in places):
            return "groups"
        return "outputs" if "outputs" in places and not apart else "everywhere"


def _mixes_features(e: Expression) -> bool:
    """Whether features of ``e`` are made of others; over another axis each is made of its own."""
    primitive = PRIMITIVES.get(e.op)
    across = dict(e.attributes).get("axis", -1) == -1
    return primitive is not None and not primitive.elementwise and across
