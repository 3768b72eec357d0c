"""The changed weights of layers that are read: by what never calls them, or a forward of their own."""

from __future__ import annotations

from torch import fx

from surgery.graft.design import Part
from surgery.graft.graphs.emit import Emitter
from surgery.graft.weights.expert_graphs import write_experts
from surgery.graft.weights.multiplied import ReadHost, write_multiplied
from surgery.layers import Layer
from surgery.planning.reading import is_effective, merged, takes_offset
from surgery.rules.affine import NotAffine
from surgery.rules.expression import Expression, expanded, is_number


def write_effective(part: Part) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """Graphs of the effective weight and bias of a layer that is read and never called, by name.

    The second are functions that they call by name. What has no effective weight, or would not be
    the same with it, is done where the weight is multiplied with.
    """
    layer = part.layer
    assert layer is not None
    found = merged(part.program, layer)
    if isinstance(found, NotAffine) or not is_effective(part.program, layer):
        return write_multiplied(part, layer)
    if layer.experts:
        graph, functions = write_experts(found.weight, layer, dict(part.sizes))
        return {layer.weight: graph}, functions
    graphs = {layer.weight: _effective_weight(part, layer, found.weight)}
    if layer.kind.one_hot:
        # A table is large, and few of its rows are looked up.
        whole = f"{layer.weight}_whole"
        read, functions = write_multiplied(part, layer, whole)
        return read, {**functions, whole: graphs[layer.weight]}
    if takes_offset(layer):
        bias = found.bias
        if layer.bias and is_number(bias, 0):
            # Where there was a bias, one is read: PyTorch's fused attention takes none for an error.
            bias = expanded(bias, found.weight.shape[:1])
        graph = fx.Graph()
        value = _emitter(graph, part, layer).emit(bias)
        graph.output(value if isinstance(value, fx.Node) else None)
        graphs[layer.offset] = graph
    return graphs, {}


def _emitter(graph: fx.Graph, part: Part, layer: Layer) -> Emitter:
    return Emitter(ReadHost(graph, layer), layer, dict(part.sizes))


def _effective_weight(part: Part, layer: Layer, matrix: Expression) -> fx.Graph:
    """The graph of the weight as the layer holds it, made of the ``matrix``."""
    graph = fx.Graph()
    emitter = _emitter(graph, part, layer)
    graph.output(layer.as_weight(emitter.host.call, emitter.emit(matrix)))
    return graph
