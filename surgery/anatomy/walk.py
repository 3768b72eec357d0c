"""Ways through the graph: back to the linears, forward to the residual sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from surgery.anatomy.graph import Graph
from surgery.anatomy.operators import Kind
from surgery.anatomy.record import Op

LIGHT: frozenset[Kind] = frozenset(("shape", "add", "mul", "div", "other"))
"""Kinds that carry hidden states on without a weight, a norm or a nonlinearity."""


def back(graph: Graph, values: Iterable[int], through: frozenset[Kind]) -> Iterator[Op]:
    """Operators upstream of ``values``; those of a kind not in ``through`` end their branch."""
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        index = graph.producer[waiting.pop()]
        if index < 0 or index in seen:
            continue
        seen.add(index)
        op = graph.ops[index]
        yield op
        if graph.kinds[index] in through:
            waiting += op.inputs


def ahead(graph: Graph, values: Iterable[int], through: frozenset[Kind]) -> Iterator[Op]:
    """Operators downstream of ``values``, nearest first."""
    seen: set[int] = set()
    waiting = list(values)
    for value in waiting:
        for index in graph.consumers[value]:
            if index in seen:
                continue
            seen.add(index)
            yield graph.ops[index]
            if graph.kinds[index] in through:
                waiting += graph.ops[index].outputs


def reaches(graph: Graph, old: int, new: int) -> bool:
    """Whether ``new`` is ``old`` or was computed from it."""
    old = graph.same(old)
    floor = graph.producer[old]
    seen: set[int] = set()
    waiting = [new]
    while waiting:
        value = waiting.pop()
        if value == old:
            return True
        index = graph.producer[value]
        # What ran before `old` was made can't come from it.
        if index < 0 or index <= floor or index in seen:
            continue
        seen.add(index)
        waiting += graph.ops[index].inputs
    return False


def addends(graph: Graph, value: int) -> list[int]:
    """The terms of the sum ``value`` is, not looking into terms that others read as well."""
    op = graph.maker(graph.same(value))
    if op is None or graph.kinds[op.index] != "add" or len(op.inputs) < 2:
        return [value]
    return [term for read in op.inputs for term in _inner(graph, read)]


def _inner(graph: Graph, value: int) -> list[int]:
    origin = graph.same(value)
    readers = {index for index in graph.consumers[origin]} | set(graph.consumers[value])
    real = [index for index in readers if graph.kinds[index] != "shape"]
    return addends(graph, value) if len(real) <= 1 else [value]


def residual_sum(graph: Graph, exit: int, entry: int) -> tuple[int, int] | None:
    """The sum that ``exit`` is added to a stream in, and that stream: one ``entry`` came from."""
    through = LIGHT | {"norm"}
    reached: set[int] = {exit}
    for op in ahead(graph, [exit], through):
        carried = [value for value in op.inputs if value in reached]
        reached.update(op.outputs)
        if graph.kinds[op.index] != "add" or len(op.inputs) < 2:
            continue
        others = [value for value in op.inputs if value not in carried]
        terms = [term for other in others for term in _inner(graph, other)]
        # A bias is no stream, and what has no maker would be looked for all the way back.
        wide = [t for t in terms if t not in graph.weights or len(graph.record.shapes[t]) > 1]
        streams = [term for term in wide if reaches(graph, term, entry)]
        if streams:
            return op.index, max(streams, key=lambda term: graph.producer[term])
    return None
