"""What feeds an attention core, and what it feeds: q, k, v and o."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from surgery.anatomy.graph import inputs_of, kind_of, maker_of
from surgery.anatomy.roles.cores import RecordedCore
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear, RecordedLinears
from surgery.anatomy.roles.operators import NORMS, PASSIVE, POINTWISE
from surgery.anatomy.roles.residual import Sum, before_scale

_CHUNKS = {"cat", "stack", "pad", "as_strided", "setitem", "copy", "einsum", "bmm", "matmul"}
"""How windows are put together again."""


@dataclass(frozen=True)
class Attention:
    """A core with the linears around it; ``roles`` by the linear's operator.

    ``firsts`` are the linears that hidden states enter by, those of queries first: projections
    themselves, or what makes the latents that are projected.
    """

    core: RecordedCore
    roles: Mapping[Node, str]
    firsts: tuple[RecordedLinear, ...]
    o: RecordedLinear | None
    cross: bool


class Projections:
    """Finds the linears of attention cores."""

    def __init__(
        self,
        flow: Flow,
        linears: RecordedLinears,
        cores: list[RecordedCore],
        sums: list[Sum],
    ):
        self.flow = flow
        self.linears = linears
        self.core_ops = {op for core in cores for op in core.ops}
        self.stream = {maker_of(item.result) for item in sums}
        self.skips = [item.skip for item in sums]
        self.skip_of = {item.result: item.skip for item in sums}
        self.by_result = linears.by_result

    def around(self, core: RecordedCore) -> Attention:
        """The linears before and after ``core``."""
        if core.whole:
            return Attention(core, {}, (), None, self._crosses([core.q], [core.k]))
        fed = [self.before(value) for value in (core.q, core.k, core.v)]
        nearest = sorted(fed[0] | fed[1] | fed[2])
        firsts = {op: self._entered(self.linears[op]) for op in nearest}
        latents = {first.op for op, first in firsts.items() if first.op is not op}
        roles: dict[Node, str] = {}
        for op in nearest:
            served = "".join(name for name, found in zip("qkv", fed, strict=True) if op in found)
            if op not in latents and served in ("q", "k", "v", "qkv", "qk", "kv"):
                roles[op] = served
        ordered = sorted(nearest, key=lambda op: op not in fed[0])
        entries = tuple(dict.fromkeys(firsts[op] for op in ordered))
        sources = [[firsts[op].source for op in sorted(found)] for found in fed[:2]]
        cross = self._crosses(sources[0] or [core.q], sources[1] or [core.k])
        return Attention(core, roles, entries, self.after(core.result), cross)

    def before(self, value: Node) -> set[Node]:
        """The nearest linears going back from an operand of a core, through numbers alone."""

        def stop(value: Node, op: Node) -> bool:
            held = op in self.linears or op in self.core_ops or op in self.stream
            # What is only looked up at was chosen by its linears, not made by them.
            return held or not self.flow.is_number(value)

        return {
            op
            for op in self.flow.backward(value, stop)
            if op in self.linears and not self.linears[op].depthwise
        }

    def after(self, value: Node) -> RecordedLinear | None:
        """The first linear that the result of a core reaches."""
        flow = self.flow
        allowed = PASSIVE | POINTWISE | NORMS | _CHUNKS | {"normalize"}

        def stop(op: Node) -> bool:
            return op in self.linears or op in self.stream or kind_of(op) not in allowed

        for op in flow.forward(value, stop):
            if op in self.linears:
                return self.linears[op]
        return None

    def _entered(self, linear: RecordedLinear) -> RecordedLinear:
        """The linear that makes the latent that ``linear`` projects, or else ``linear`` itself."""
        while True:
            # DeepSeek, MiniCPM3: keys and values are projected from one narrow latent.
            *_, value = self._back(linear.source)
            made = self.by_result.get(value)
            if made is None or value in self.streams:
                return linear
            linear = made

    def _back(self, value: Node) -> Iterator[Node]:
        """``value`` before each norm, scale and selection, back to the result of a linear."""
        while True:
            yield value
            if value in self.by_result:
                return
            before = self.flow.before_norm(value)
            if before is None:
                before = before_scale(self.flow, value)
            if before is None:
                before = self.flow.stripped(value, PASSIVE)
            if before == value:
                before = self._parted(value)
            if before is None:
                return
            value = before

    def _parted(self, value: Node) -> Node | None:
        """What all parts of a ``cat`` come from: one latent as it is, and normed."""
        op = maker_of(value)
        if op is None or kind_of(op) != "cat":
            return None
        ends = {list(self._back(part))[-1] for part in inputs_of(op)}
        return ends.pop() if len(ends) == 1 and value not in ends else None

    @cached_property
    def streams(self) -> set[Node]:
        """What a residual goes past: no latent of one attention alone."""
        return {value for skip in self.skips for value in self._back(skip)}

    def _crosses(self, queries: list[Node], keys: list[Node]) -> bool:
        """Whether keys come from elsewhere than queries."""
        found = set[Node]().union(*map(self._origins, queries))
        others = set[Node]().union(*map(self._origins, keys))
        if found & others or others & self._earlier(found):
            return False
        return not any(self.flow.depends(key, query) for key in keys for query in queries)

    def _earlier(self, found: set[Node]) -> set[Node]:
        """The same stream before: layers may share the keys of one that came first."""
        reached = list(found)
        known = set(found)
        for value in reached:
            if value in self.skip_of:
                new = self._origins(self.skip_of[value]) - known
                known |= new
                reached += new
        return known

    def _origins(self, value: Node) -> set[Node]:
        """The sums, linears and arguments that ``value`` is put together from."""
        flow = self.flow
        found: set[Node] = set()

        def stop(value: Node, op: Node) -> bool:
            kind = kind_of(op)
            held = op in self.linears or op in self.stream or kind == "embedding"
            if held or not inputs_of(op):
                found.add(value)
            return held

        for op in flow.backward(value, stop):
            found.update(v for v in inputs_of(op) if v in flow.recording.arguments)
        if value in flow.recording.arguments:
            found.add(value)
        return found
