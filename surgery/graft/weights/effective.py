"""The changed weights of layers that are read and never called."""

from __future__ import annotations

from torch import fx

from surgery.graft.design import Part
from surgery.graft.graphs.emit import Emitter
from surgery.graft.weights.expert_graphs import write_experts
from surgery.graft.weights.multiplied import ReadHost, write_multiplied
from surgery.planning.layers import Layer
from surgery.planning.reading import is_effective, takes_offset
from surgery.rules.affine import NotAffine
from surgery.rules.expression import Expression


def write_effective(part: Part) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """Graphs of the effective weight and bias of a layer that is read and never called, by name.

    The second are functions that they call by name. What has no effective weight, or would not be
    the same with it, is done where the weight is multiplied with.
    """
    merged = part.program.merge
    assert part.layer is not None
    if not is_effective(part.program, part.layer):
        return write_multiplied(part, part.layer)
    assert not isinstance(merged, NotAffine)
    offset = takes_offset(part.layer)
    if part.layer.experts:
        graph, functions = write_experts(merged.weight, part.layer, dict(part.sizes))
        return {part.layer.weight: graph}, functions
    graphs: dict[str, fx.Graph] = {}
    tensors = {"W": merged.weight, "b": merged.bias}
    for name in "Wb" if offset else "W":
        graph = fx.Graph()
        host = ReadHost(graph, part.layer)
        value = Emitter(host, part.layer, dict(part.sizes)).emit(tensors[name])
        if name == "W":
            value = _laid(host, value, part.layer)
        graph.output(value if isinstance(value, fx.Node) else None)
        graphs[part.layer.names[name]] = graph
    return graphs, {}


def _laid(host: ReadHost, value: fx.Node, layer: Layer) -> fx.Node:
    """A matrix [out, into] as the layer holds its weight."""
    if layer.kind in ("transposed", "embedding"):
        value = host.call("t", value)
    if layer.held:
        return host.call("reshape", value, *layer.held)
    own = host.leaf(Expression("operand", (), (("name", "W"),)))
    return host.call("view_as", value, own) if layer.kind == "convolution" else value
