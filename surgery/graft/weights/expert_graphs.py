"""The graphs that give a module the changed weights of its experts (see graft/weights/expert_weights.py)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from surgery.graft.generate import SELF
from surgery.graft.graphs import calls
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.nodes import FunctionHost
from surgery.graft.weights import experts
from surgery.layers import Layer
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression, number
from surgery.rules.simplify import make

Term = tuple[Expression, Expression, Expression]
"""B, A and s of a change s·B A."""


def write_experts(
    weight: Expression, layer: Layer, sizes: Mapping[str, Scalar]
) -> tuple[fx.Graph, dict[str, fx.Graph]]:
    """The graph of the property that is read, and the functions that it calls by name."""
    graph = fx.Graph()
    own = graph.call_function(calls.own_parameter, (graph.get_attr(SELF), layer.weight))
    writer = _ExpertWriter(graph, layer, sizes)
    terms = low_rank_terms(weight)
    if terms is None:
        leaves = sorted((e for e in weight.leaves if e.op == "param"), key=str)
        name = writer.function(weight, [_WEIGHT, *leaves], turned=layer.kind.transposed)
        values = (own, *(graph.get_attr(leaf.name) for leaf in leaves))
        arguments = (graph.get_attr(SELF), name, layer.experts, values)
        graph.output(graph.call_function(experts.made_weights, arguments))
    else:
        factors = tuple(
            (writer.value(left), writer.value(right), writer.number(scale))
            for left, right, scale in terms
        )
        arguments = (own, layer.experts, layer.kind.transposed, factors)
        graph.output(graph.call_function(experts.low_rank_weights, arguments))
    return graph, writer.functions


_WEIGHT = Expression("operand", (), (("name", "W"),))


def low_rank_terms(weight: Expression) -> tuple[Term, ...] | None:
    """The products that are added in W + s·(B @ A) + …, or None if ``weight`` is something else."""
    if weight == _WEIGHT:
        return ()
    if weight.op != "add":
        return None
    for rest, change in (weight.arguments, weight.arguments[::-1]):
        inner, term = low_rank_terms(rest), _term(change)
        if inner is not None and term is not None:
            return (*inner, term)
    return None


def _term(e: Expression) -> Term | None:
    if e.op == "matmul":
        return None if e.reads("W") else (e.arguments[0], e.arguments[1], number(1))
    if e.op == "multiply":
        for factor, other in (e.arguments, e.arguments[::-1]):
            found = _term(other) if factor.number is not None else None
            if found is not None:
                return found[0], found[1], make("multiply", (factor, found[2]))
    if e.op == "scale_rows" and not e.arguments[1].reads("W"):
        found = _term(e.arguments[0])
        if found is not None:
            rows = make("scale_rows", (found[0], e.arguments[1]), found[0].shape)
            return rows, found[1], found[2]
    return None


class _ExpertWriter:
    def __init__(self, graph: fx.Graph, layer: Layer, sizes: Mapping[str, Scalar]):
        self.graph = graph
        self.layer = layer
        self.sizes = sizes
        self.functions: dict[str, fx.Graph] = {}

    def value(self, e: Expression) -> fx.Node:
        """An expression for every expert: a param itself, or a function of each expert's."""
        if e.op == "param":
            return self.graph.get_attr(e.name)
        leaves = sorted(e.leaves, key=str)
        name = self.function(e, leaves)
        values = tuple(self.graph.get_attr(leaf.name) for leaf in leaves)
        return self.graph.call_function(experts.for_each, (self.graph.get_attr(SELF), name, values))

    def number(self, e: Expression) -> Scalar:
        assert e.number is not None
        return e.number.value(self.sizes)

    def function(self, e: Expression, leaves: list[Expression], turned: bool = False) -> str:
        """A function of the values of ``leaves`` for one expert; ``turned`` as it is stored."""
        graph = fx.Graph()
        given = {leaf: graph.placeholder(f"value{i}") for i, leaf in enumerate(leaves)}
        result = Emitter(FunctionHost(graph, given), self.layer, self.sizes).emit(e)
        graph.output(graph.call_function(torch.t, (result,)) if turned else result)
        name = f"{self.layer.weight}_{len(self.functions)}"
        self.functions[name] = graph
        return name
