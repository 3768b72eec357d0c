"""Layers that serve several at once: which of their outputs are whose.

A fused projection is told apart by what becomes of its outputs: those that reach the queries of the
attention's core are the rows of q, and so on. How they get there (split, chunk, views by head,
rotary embeddings) does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch.fx import Node

from surgery.anatomy.graph import (
    argument_of,
    inputs_of,
    kind_of,
    maker_of,
    name_of,
    outputs_of,
    shape_of,
)
from surgery.anatomy.rerun import between, reaching
from surgery.anatomy.roles.cores import RecordedCore
from surgery.anatomy.roles.feedforward import FeedForward, features_axis
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear
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

    def projections(self, linear: RecordedLinear, served: str, core: RecordedCore) -> Reach:
        """Which outputs reach each of ``served`` (`qkv`, `kv`)."""
        return self._found(linear, {name: getattr(core, name) for name in served})

    def feed_forward(self, linear: RecordedLinear, found: FeedForward) -> Found:
        """The rows of `gate` and `up`: of the factors of a product the gate is the bent one."""
        product = maker_of(self.flow.stripped(found.down.source, PASSIVE))
        if product is not None and kind_of(product) == "glu":
            return self._halves(linear, product)
        if product is None or kind_of(product) != "mul":
            return {}
        factors = tuple(dict.fromkeys(inputs_of(product)))
        bent = [self._is_bent(linear.result, value) for value in factors]
        if len(factors) != 2 or bent.count(True) != 1:
            return {}
        gate = bent.index(True)
        return self._found(linear, {"gate": factors[gate], "up": factors[1 - gate]}).apart

    def _halves(self, linear: RecordedLinear, glu: Node) -> Found:
        """`glu` of the layer's result: its second half is the gate of the first."""
        axis, shape = features_axis(self.flow, linear), shape_of(inputs_of(glu)[0])
        dim = argument_of(glu, 1, "dim", -1)
        if self.flow.same(linear.result) != self.flow.same(inputs_of(glu)[0]) or (
            dim % len(shape) != axis % len(shape)
        ):
            return {}
        half = shape[axis] // 2
        return Reach(2 * half, {"up": range(half), "gate": range(half, 2 * half)}).apart

    def _is_bent(self, source: Node, value: Node) -> bool:
        ops = between(self.flow.recording, source, (value,))
        return any(kind_of(op) in ACTIVATIONS for op in ops)

    def _found(self, linear: RecordedLinear, ends: Mapping[str, Node]) -> Reach:
        source = linear.result
        key = self._way(source, ends)
        if key not in self.known:
            axis = features_axis(self.flow, linear)
            reached = reaching(self.flow.recording, source, axis, ends.values())
            features = dict(zip(ends, reached or (), strict=False))
            self.known[key] = Reach(shape_of(source)[axis], features)
        return self.known[key]

    def _way(self, source: Node, ends: Mapping[str, Node]) -> object:
        """What is done on the way, in terms that are the same in every layer."""
        numbers: dict[Node, int] = {}

        def noted(thing: Any) -> object:
            if isinstance(thing, Node):
                number = numbers.setdefault(thing, len(numbers))
                return (number, shape_of(thing))
            if isinstance(thing, tuple | list):
                return tuple(map(noted, cast("tuple[Any, ...]", thing)))
            if isinstance(thing, dict):
                return tuple((k, noted(v)) for k, v in cast("dict[str, Any]", thing).items())
            return repr(thing)

        start = noted(source)
        way = tuple(
            (
                name_of(op),
                noted(op.args),
                noted(op.kwargs),
                noted(tuple(outputs_of(op))),
            )
            for op in between(self.flow.recording, source, ends.values())
        )
        return start, way, tuple((name, noted(end)) for name, end in ends.items())
