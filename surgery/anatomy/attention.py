"""Attention: a softmax core, and the linears around it."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.anatomy.graph import Graph, Linear
from surgery.anatomy.operators import MULTI_HEAD, SDPA, Kind, plain
from surgery.anatomy.record import Op, Value
from surgery.anatomy.walk import LIGHT, ahead, back, reaches

TOWARDS_CORE: frozenset[Kind] = LIGHT | {
    "norm",
    "batch_norm",
    "activation",
    "conv",
    "product",
    "mixing",
    "choice",
}
SCORES: frozenset[Kind] = LIGHT | {"activation", "choice"}


@dataclass(frozen=True)
class Core:
    """softmax(QKᵀ)V: its three operands and its result."""

    op: int
    query: int
    key: int
    value: int
    output: int
    whole: bool = False


@dataclass(frozen=True)
class Attention:
    """One core with the linears nearest to it. ``out`` is None where there is none."""

    core: Core
    q: tuple[Linear, ...]
    k: tuple[Linear, ...]
    v: tuple[Linear, ...]
    out: Linear | None
    crossed: bool

    @property
    def linears(self) -> list[Linear]:
        found = {linear.op: linear for linear in (*self.q, *self.k, *self.v)}
        return [found[index] for index in sorted(found)]


def attentions(graph: Graph) -> list[Attention]:
    """All attention in the order it ran."""
    cores = sorted(_cores(graph), key=lambda core: core.op)
    for core in cores:
        graph.kinds[core.op] = "core"
    return [_around(graph, core) for core in cores]


def _cores(graph: Graph) -> list[Core]:
    found: list[Core] = []
    for op in graph.ops:
        kind = graph.kinds[op.index]
        name = plain(op.name)
        if name == SDPA:
            query, key, value = _named(op, ("query", "key", "value"))
            found.append(Core(op.index, query, key, value, op.outputs[0]))
        elif name == MULTI_HEAD:
            query, key, value = _named(op, ("query", "key", "value"))
            found.append(Core(op.index, query, key, value, op.outputs[0], whole=True))
        elif kind == "softmax" and (core := _written_out(graph, op)):
            found.append(core)
    return found


def _named(op: Op, names: tuple[str, ...]) -> list[int]:
    """The values of the leading arguments, given by place or by name."""
    given = [op.args[i] if i < len(op.args) else op.kwargs[name] for i, name in enumerate(names)]
    return [item.number for item in given if isinstance(item, Value)]


def _written_out(graph: Graph, softmax: Op) -> Core | None:
    """matmul → softmax → matmul, both between activations."""
    scores = [op for op in back(graph, softmax.inputs[:1], SCORES) if _is_product(graph, op)]
    mixes = [op for op in ahead(graph, softmax.outputs, SCORES) if _is_product(graph, op)]
    if not scores or not mixes:
        return None
    # Scores of relative positions are added to those of the contents: the contents' depend on
    # the input on both sides. The scores that ran first are theirs.
    full = [op for op in scores if all(graph.dynamic[v] for v in _pair(op))] or scores
    query, key = _pair(min(full, key=lambda op: op.index))
    mix = min(mixes, key=lambda op: op.index)
    weights = {value for op in ahead(graph, softmax.outputs, SCORES) for value in op.outputs}
    weights.update(softmax.outputs)
    others = [value for value in _pair(mix) if value not in weights]
    return Core(mix.index, query, key, others[0], mix.outputs[0]) if len(others) == 1 else None


def _is_product(graph: Graph, op: Op) -> bool:
    return graph.kinds[op.index] == "product" and len(op.inputs) > 1


def _pair(op: Op) -> tuple[int, int]:
    pair = op.inputs[1:3] if plain(op.name) == "baddbmm" else op.inputs[:2]
    return pair[0], pair[1]


def _around(graph: Graph, core: Core) -> Attention:
    if core.whole:
        crossed = graph.same(core.query) != graph.same(core.key)
        return Attention(core, (), (), (), None, crossed)
    q, k, v = (_nearest(graph, value) for value in (core.query, core.key, core.value))
    every = {linear.op: linear for linear in (*q, *k, *v)}
    last = {
        index
        for index, linear in every.items()
        if not any(i != index and reaches(graph, linear.output, o.input) for i, o in every.items())
    }
    q, k, v = (tuple(x for x in part if x.op in last) or part for part in (q, k, v))
    crossed = bool(q and k) and not _same_source(graph, q[0], k[0])
    return Attention(core, q, k, v, _out(graph, core, q), crossed)


def _nearest(graph: Graph, value: int) -> tuple[Linear, ...]:
    found = [op.index for op in back(graph, [value], TOWARDS_CORE)]
    return tuple(graph.linears[index] for index in sorted(found) if index in graph.linears)


def _out(graph: Graph, core: Core, q: tuple[Linear, ...]) -> Linear | None:
    """The first linear after the core, unless the residual stream comes in before it."""
    through = LIGHT | {"norm", "activation"}
    reached: set[int] = {core.output}
    for op in ahead(graph, [core.output], through):
        if op.index in graph.linears:
            linear = graph.linears[op.index]
            return linear if linear.input in reached else None
        others = [value for value in op.inputs if value not in reached]
        if graph.kinds[op.index] == "add" and q:
            streams = [v for v in others if v not in graph.weights]
            if any(reaches(graph, value, q[0].input) for value in streams):
                return None
        reached.update(op.outputs)
    return None


def _same_source(graph: Graph, q: Linear, k: Linear) -> bool:
    """Self-attention: keys come from what the queries come from, perhaps pooled or shifted."""
    if reaches(graph, q.input, k.input):
        return True
    own = _sources(graph, q.input)
    return bool(own & _sources(graph, k.input))


def _sources(graph: Graph, value: int) -> set[int]:
    # Queries and keys of DETR are two sums of the same stream with positions.
    terms = {graph.same(value)}
    op = graph.maker(graph.unshaped(value))
    if op is not None and graph.kinds[op.index] == "add":
        terms.update(graph.same(term) for term in op.inputs if graph.dynamic[term])
    return terms
