"""An exported program as a traced graph: a module again, whose parameters can be changed.

Parameters and buffers, which a program takes as inputs, are attributes; layers are called; every
node tells in its meta which one of the program it is (`ORIGIN`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from surgery.graft.graph_writer import ORIGIN
from surgery.graft.programs.modules import build, first_name, parameters_of, reads_of, stack_of


def raised(
    graph: fx.Graph, specs: Any, tensors: dict[str, Tensor], root: nn.Module
) -> fx.GraphModule:
    """``graph``, that of a program, as the graph of a module which holds ``tensors``.

    ``root`` has the graphs that it runs as one function (`wrap_with_set_grad_enabled`).
    """
    held = parameters_of(specs)
    module, layers, same = build(graph, held, tensors, root)
    made = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        known[node] = _copied(node, made, known, held, layers)
        known[node].meta = _meta(node, same)
        if node.op == "get_attr":
            setattr(module, str(node.target), getattr(root, str(node.target)))
    made.lint()
    result = fx.GraphModule(module, made, class_name="ExportedProgram")
    # An `fx.GraphModule` takes over no more than its graph names.
    result._modules, result._parameters, result._buffers = (
        module._modules,
        module._parameters,
        module._buffers,
    )
    return result


def _copied(
    node: fx.Node,
    made: fx.Graph,
    known: dict[fx.Node, fx.Node],
    held: dict[str, str],
    layers: dict[fx.Node, str],
) -> fx.Node:
    if node.op == "placeholder" and node.name in held:
        return made.get_attr(held[node.name])
    if node in layers:
        reads = reads_of(node)
        assert reads is not None
        given = node.args[reads.input]
        assert isinstance(given, fx.Node)
        return made.call_module(layers[node], (known[given],))
    return made.node_copy(node, known.__getitem__)


def _meta(node: fx.Node, same: Mapping[str, str]) -> dict[str, Any]:
    paths = {key: first_name(key.partition("@")[0], same) for key in stack_of(node)}
    stack = {key: (paths[key], cls) for key, cls in stack_of(node).items()}
    meta: dict[str, Any] = {ORIGIN: node.name}
    return {**meta, "nn_module_stack": stack} if stack else meta
