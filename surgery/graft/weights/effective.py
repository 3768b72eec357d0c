"""The changed weights of layers that are read and never called."""

from __future__ import annotations

from torch import fx

from surgery.graft.design import Part
from surgery.graft.generate import SELF
from surgery.graft.graphs import kernels
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.nodes import GraphHost
from surgery.graft.weights.expert_graphs import write_experts
from surgery.planning.layers import Layer
from surgery.rules.affine import NotAffine
from surgery.rules.expression import Expression


def write_effective(part: Part) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """Graphs of the effective weight and bias of a layer that is read and never called, by name.

    The second are functions that they call by name.

    Raises:
        ValueError: if the part's program has no merge.

    """
    merged = part.program.merge
    if isinstance(merged, NotAffine) or part.layer is None:
        raise ValueError("only a method that merges has an effective weight")
    if part.layer.experts:
        graph, functions = write_experts(merged.weight, part.layer, dict(part.sizes))
        return {part.layer.weight: graph}, functions
    graphs: dict[str, fx.Graph] = {}
    for name, expression in (("W", merged.weight), ("b", merged.bias)):
        graph = fx.Graph()
        host = _EffectiveHost(graph, part.layer)
        value = Emitter(host, part.layer, dict(part.sizes)).emit(expression)
        graph.output(value if isinstance(value, fx.Node) else None)
        graphs[part.layer.names[name]] = graph
    return graphs, {}


class _EffectiveHost(GraphHost):
    """Reads a layer's own tensors beneath the properties that replace them."""

    def __init__(self, graph: fx.Graph, layer: Layer):
        super().__init__(graph)
        self.layer = layer

    def leaf(self, expression: Expression) -> fx.Node:
        if expression.op == "param":
            return self.graph.get_attr(expression.name)
        name = self.layer.names[expression.name]
        return self.call(kernels.own_parameter, self.graph.get_attr(SELF), name)
