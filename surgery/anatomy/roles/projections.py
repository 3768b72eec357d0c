"""What feeds an attention core, and what it feeds: q, k, v and o."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from surgery.anatomy.roles.cores import Core
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear
from surgery.anatomy.roles.operators import NORMS, PASSIVE, POINTWISE
from surgery.anatomy.roles.residual import Sum


_CHUNKS = frozenset("cat stack pad as_strided setitem copy einsum bmm matmul".split())
"""How windows are put together again."""


@dataclass(frozen=True)
class Attention:
    """A core with the linears around it; ``roles`` by the index of the linear's operator."""

    core: Core
    roles: Mapping[int, str]
    sources: tuple[int, ...]
    o: Linear | None
    cross: bool

    def of(self, role: str) -> list[int]:
        return [index for index, name in self.roles.items() if name == role]


class Projections:
    """Finds the linears of attention cores."""

    def __init__(self, flow: Flow, linears: Mapping[int, Linear], cores: list[Core], sums: list[Sum]):
        self.flow = flow
        self.linears = linears
        self.core_ops = {op.index for core in cores for op in core.ops}
        self.stream = {flow.record.producer[item.result] for item in sums}

    def around(self, core: Core) -> Attention:
        """The linears before and after ``core``."""
        if core.whole:
            cross = len({self.flow.unnormed(v) for v in (core.q, core.k, core.v)}) > 1
            return Attention(core, {}, (core.q, core.k, core.v), None, cross)
        fed = [self.before(value) for value in (core.q, core.k, core.v)]
        roles: dict[int, str] = {}
        for index in sorted(set().union(*fed)):
            served = "".join(name for name, found in zip("qkv", fed, strict=True) if index in found)
            if not self._feeds(index, set().union(*fed)):
                roles[index] = served
        cross = self._crosses(core, fed)
        sources = tuple(dict.fromkeys(self.linears[index].source for index in roles))
        known = {index: role for index, role in roles.items() if role in ("q", "k", "v", "qkv", "kv")}
        return Attention(core, known, sources, self.after(core.result), cross)

    def before(self, value: int) -> set[int]:
        """The nearest linears going back from an operand of a core."""
        found: set[int] = set()

        def stop(_: int, op: object) -> bool:
            index = getattr(op, "index", -1)
            return index in self.linears or index in self.core_ops or index in self.stream

        for op in self.flow.backward(value, stop):
            if op.index in self.linears and not self.linears[op.index].depthwise:
                found.add(op.index)
        return found

    def after(self, value: int) -> Linear | None:
        """The first linear that the result of a core reaches."""
        flow = self.flow
        allowed = PASSIVE | POINTWISE | NORMS | _CHUNKS

        def stop(op: object) -> bool:
            index = getattr(op, "index", -1)
            return index in self.linears or index in self.stream or flow.kinds[index] not in allowed

        for op in flow.forward(value, stop):
            if op.index in self.linears:
                return self.linears[op.index]
        return None

    def _feeds(self, index: int, others: set[int]) -> bool:
        """Whether a linear is the first half of another: a latent, not a projection of its own."""
        result = self.linears[index].result
        return any(
            other != index and self.flow.depends(self.linears[other].source, result)
            for other in others
        )

    def _crosses(self, core: Core, fed: list[set[int]]) -> bool:
        """Whether keys come from elsewhere than queries."""
        flow = self.flow
        q, k = (
            {flow.unnormed(self.linears[i].source) for i in found} or {flow.unnormed(value)}
            for found, value in zip(fed[:2], (core.q, core.k), strict=True)
        )
        if q & k:
            return False
        return not any(flow.depends(key, query) for key in k for query in q)
