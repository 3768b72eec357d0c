"""Layers that are other than in the base of a program, as the functions that layers are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from surgery.graft.completing import ORIGINAL
from surgery.graft.graph_writer import ORIGIN
from surgery.graft.programs.modules import reads_of


def opened(
    model: fx.GraphModule, base: Mapping[str, fx.Node], is_of_base: Callable[[fx.Node], bool]
) -> fx.Graph:
    """The model's graph, where layers run once more, or with a bias they have got, as functions.

    ``base`` has the nodes of the base by name.
    """
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    original: fx.Graph = model.__dict__.get(ORIGINAL, model.graph)
    calls = (n for n in original.nodes if n.op == "call_module")
    origins = {str(n.target): base[n.meta[ORIGIN]] for n in calls}
    for node in model.graph.nodes:
        if node.op == "call_module" and not is_of_base(node):
            known[node] = _layer(model, graph, node, known[node.args[0]], origins)
            known[node].meta = {k: v for k, v in node.meta.items() if k != ORIGIN}
        else:
            known[node] = graph.node_copy(node, known.__getitem__)
    return graph


def _layer(
    model: fx.GraphModule,
    graph: fx.Graph,
    node: fx.Node,
    x: fx.Node,
    origins: Mapping[str, fx.Node],
) -> fx.Node:
    origin = origins[str(node.target)]
    reads = reads_of(origin)
    assert reads is not None
    layer = model.get_submodule(str(node.target))
    own: list[Any] = list(origin.args)
    own[reads.input] = x
    for index, name in ((reads.weight, "weight"), (reads.bias, "bias")):
        if index is not None and layer._parameters.get(name) is not None:
            own += [None] * (index + 1 - len(own))
            own[index] = graph.get_attr(f"{node.target}.{name}")
    return graph.call_function(origin.target, tuple(own), dict(origin.kwargs))  # type: ignore[arg-type]
