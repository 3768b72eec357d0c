"""The changed weights of layers that are read: by what never calls them, or a forward of their own."""

from __future__ import annotations

import torch
from torch import fx

from surgery.graft.design import Part
from surgery.graft.graphs.emit import Emitter
from surgery.graft.weights.expert_graphs import write_experts
from surgery.graft.weights.multiplied import ReadHost, write_multiplied
from surgery.planning.layers import Layer
from surgery.planning.reading import is_effective, takes_offset
from surgery.rules.affine import Merge, NotAffine
from surgery.rules.expression import expanded, is_number, operand


def write_effective(part: Part) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """Graphs of the effective weight and bias of a layer that is read and never called, by name.

    The second are functions that they call by name. What has no effective weight, or would not be
    the same with it, is done where the weight is multiplied with.
    """
    merged, layer = part.program.merge, part.layer
    assert layer is not None
    if isinstance(merged, NotAffine) or not is_effective(part.program, layer):
        return write_multiplied(part, layer)
    if layer.experts:
        graph, functions = write_experts(merged.weight, layer, dict(part.sizes))
        return {layer.weight: graph}, functions
    graphs = {layer.weight: _effective_weight(part, layer, merged)}
    if layer.kind == "embedding":
        # A table is large, and few of its rows are looked up.
        whole = f"{layer.weight}_whole"
        read, functions = write_multiplied(part, layer, whole)
        return read, {**functions, whole: graphs[layer.weight]}
    if takes_offset(layer):
        bias = merged.bias
        if layer.bias and is_number(bias, 0):
            # Where there was a bias, one is read: PyTorch's fused attention takes none for an error.
            bias = expanded(bias, merged.weight.shape[:1])
        graph = fx.Graph()
        value = _emitter(graph, part, layer).emit(bias)
        graph.output(value if isinstance(value, fx.Node) else None)
        graphs[layer.offset] = graph
    return graphs, {}


def _emitter(graph: fx.Graph, part: Part, layer: Layer) -> Emitter:
    return Emitter(ReadHost(graph, layer), layer, dict(part.sizes))


def _effective_weight(part: Part, layer: Layer, merged: Merge) -> fx.Graph:
    """The graph of the weight as the layer holds it, made of the matrix of ``merged``."""
    graph = fx.Graph()
    emitter = _emitter(graph, part, layer)
    host, value = emitter.host, emitter.emit(merged.weight)
    if layer.kind == "embedding" and not is_number(merged.bias, 0):
        # A one-hot input sums to one, so the bias is the same row added to each.
        offset = emitter.emit(merged.bias)
        offset = host.call("unsqueeze", offset, 1) if isinstance(offset, fx.Node) else offset
        value = host.call(torch.add, value, offset)
    if layer.kind in ("transposed", "embedding"):
        value = host.call("t", value)
    if layer.held:
        value = host.call("reshape", value, *layer.held)
    if layer.kind == "convolution":
        value = host.call("reshape_as", value, host.leaf(operand("W", ())))
    graph.output(value)
    return graph
