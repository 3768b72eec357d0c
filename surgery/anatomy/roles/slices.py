"""Layers that serve several at once: which of their outputs are whose.

A fused projection is told apart by what becomes of its outputs: those that reach the queries of the
attention's core are the rows of q, and so on. How they get there (split, chunk, views by head,
rotary embeddings) does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from surgery.anatomy.record import Op, Value
from surgery.anatomy.replay import between, reaching
from surgery.anatomy.roles.cores import Core
from surgery.anatomy.roles.feedforward import FeedForward, features_axis
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear
from surgery.anatomy.roles.operators import ACTIVATIONS, PASSIVE
from surgery.rules.rows import Rows, rows_of

Found = dict[str, Rows]


@dataclass(frozen=True)
class Reach:
    """How many features a layer makes, and which of them reach what; none if it is not known."""

    total: int
    features: Mapping[str, Sequence[int]]

    @property
    def apart(self) -> Found:
        """The rows of each name, if all have some, in regular blocks, and none is in two."""
        every = [f for found in self.features.values() for f in found]
        rows = {name: rows_of(name, self.total, found) for name, found in self.features.items()}
        if len(every) != len(set(every)) or None in rows.values():
            return {}
        return {name: found for name, found in rows.items() if found is not None}

    @property
    def alike(self) -> tuple[str, ...]:
        """All names, if the same features reach each of them: the layer is as much one as another."""
        sets = {frozenset(found) for found in self.features.values()}
        return tuple(self.features) if len(sets) == 1 and any(sets) else ()


class Slices:
    """Tells the slices of fused layers; layers whose outputs take the same way are told once."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.known: dict[object, Reach] = {}

    def projections(self, linear: Linear, served: str, core: Core) -> Reach:
        """Which outputs reach each of ``served`` (`qkv`, `kv`)."""
        return self._found(linear, {name: getattr(core, name) for name in served})

    def feed_forward(self, linear: Linear, found: FeedForward) -> Found:
        """The rows of `gate` and `up`: of the factors of a product the gate is the bent one."""
        product = self.flow.op(self.flow.stripped(found.down.source, PASSIVE))
        if product is not None and self.flow.kinds[product.index] == "glu":
            return self._halves(linear, product)
        if product is None or self.flow.kinds[product.index] != "mul":
            return {}
        factors = tuple(dict.fromkeys(product.inputs))
        bent = [self._is_bent(linear.result, value) for value in factors]
        if len(factors) != 2 or bent.count(True) != 1:
            return {}
        gate = bent.index(True)
        return self._found(linear, {"gate": factors[gate], "up": factors[1 - gate]}).apart

    def _halves(self, linear: Linear, glu: Op) -> Found:
        """`glu` of the layer's result: its second half is the gate of the first."""
        axis, shape = features_axis(self.flow, linear), self.flow.record.shapes[glu.inputs[0]]
        dim = glu.args[1] if len(glu.args) > 1 else glu.kwargs.get("dim", -1)
        if self.flow.same(linear.result) != self.flow.same(glu.inputs[0]) or (
            dim % len(shape) != axis % len(shape)
        ):
            return {}
        half = shape[axis] // 2
        return Reach(2 * half, {"up": range(half), "gate": range(half, 2 * half)}).apart

    def _is_bent(self, source: int, value: int) -> bool:
        ops = between(self.flow.record, source, (value,))
        return any(self.flow.kinds[op.index] in ACTIVATIONS for op in ops)

    def _found(self, linear: Linear, ends: Mapping[str, int]) -> Reach:
        record, source = self.flow.record, linear.result
        key = self._way(source, ends)
        if key not in self.known:
            axis = features_axis(self.flow, linear)
            reached = reaching(record, source, axis, ends.values())
            features = dict(zip(ends, reached or (), strict=False))
            self.known[key] = Reach(record.shapes[source][axis], features)
        return self.known[key]

    def _way(self, source: int, ends: Mapping[str, int]) -> object:
        """What is done on the way, in terms that are the same in every layer."""
        shapes = self.flow.record.shapes
        numbers: dict[int, int] = {}

        def noted(thing: Any) -> object:
            if isinstance(thing, Value):
                number = numbers.setdefault(thing.number, len(numbers))
                return (number, shapes[thing.number])
            if isinstance(thing, tuple):
                return tuple(map(noted, cast("tuple[Any, ...]", thing)))
            if isinstance(thing, dict):
                return tuple((k, noted(v)) for k, v in cast("dict[str, Any]", thing).items())
            return repr(thing)

        start = noted(Value(source))
        way = tuple(
            (op.name, noted(op.args), noted(op.kwargs), noted(tuple(map(Value, op.outputs))))
            for op in between(self.flow.record, source, ends.values())
        )
        return start, way, tuple((name, noted(Value(end))) for name, end in ends.items())
