"""The changed weights of layers that are read and never called."""

from __future__ import annotations

from torch import fx

from surgery.graft.design import Part
from surgery.graft.graphs.emit import Emitter
from surgery.graft.weights.expert_graphs import write_experts
from surgery.graft.weights.multiplied import ReadHost, write_multiplied
from surgery.rules.affine import NotAffine
from surgery.rules.expression import expanded, is_number


def write_effective(part: Part) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """Graphs of the effective weight and bias of a layer that is read and never called, by name.

    The second are functions that they call by name. What has no effective weight, or would not be
    the same with it, is done where the weight is multiplied with.
    """
    merged = part.program.merge
    assert part.layer is not None
    offset = part.layer.bias or not part.layer.held
    lost = not isinstance(merged, NotAffine) and not offset and not is_number(merged.bias, 0)
    if isinstance(merged, NotAffine) or lost or part.program.uses("dropout"):
        return write_multiplied(part, part.layer)
    if part.layer.experts:
        graph, functions = write_experts(merged.weight, part.layer, dict(part.sizes))
        return {part.layer.weight: graph}, functions
    graphs: dict[str, fx.Graph] = {}
    tensors = {"W": merged.weight, "b": merged.bias}
    if part.layer.bias and is_number(merged.bias, 0):
        # Where there was a bias, one is read: PyTorch's fused attention takes none for an error.
        tensors["b"] = expanded(merged.bias, merged.weight.shape[:1])
    for name in "Wb" if offset else "W":
        graph = fx.Graph()
        host = ReadHost(graph, part.layer)
        value = Emitter(host, part.layer, dict(part.sizes)).emit(tensors[name])
        if name == "W" and part.layer.held:
            value = host.call("t", value) if part.layer.kind == "transposed" else value
            value = host.call("reshape", value, *part.layer.held)
        graph.output(value if isinstance(value, fx.Node) else None)
        graphs[part.layer.names[name]] = graph
    return graphs, {}
