"""Changed weights as nodes of a traced graph, for whatever reads a weight and is no layer's call.

A function that takes a weight turned (Falcon, and `nn.Linear` after decompositions), the products of
experts, or a graph within the graph (a branch of `torch.cond`) gets the effective weight in place
of the parameter, as modules that read a weight do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.nodes import FunctionHost
from surgery.graft.node_host import NodeHost
from surgery.graft.weights.expert_graphs import low_rank_terms
from surgery.layers import Layer
from surgery.planning.reading import changed, merged
from surgery.rules.affine import NotAffine
from surgery.rules.expression import Expression, operand
from surgery.rules.program import Program

FUNCTION = "surgery_function_"
"""How the names of functions begin that a graph runs for every expert."""


def effective(host: NodeHost, layer: Layer, program: Program) -> dict[str, fx.Node]:
    """The weight and the bias as ``program`` changes them, by the names that the layer has for them.

    Those that it leaves alone are left out. It must have an effective weight.
    """
    found = merged(program, layer)
    assert not isinstance(found, NotAffine)
    names = {layer.names[name] for name in changed(program, layer)}
    sizes = host.edit.sizes
    if layer.experts:
        return {layer.weight: _of_experts(host, layer, found.weight)}
    emitter = Emitter(host, layer, sizes)
    made: dict[str, Any] = {}
    if layer.weight in names:
        made[layer.weight] = layer.as_weight(host.call, emitter.emit(found.weight))
    if layer.offset in names:
        made[layer.offset] = emitter.emit(found.bias)
    return made


def _of_experts(host: NodeHost, layer: Layer, weight: Expression) -> fx.Node:
    """The weights of all experts: a product for each is added, or a function run on each."""
    own = host.attribute(layer.weight)
    shape = host.parameter(layer.weight).shape
    packed = len(shape) != 3
    stacked = host.call("view", own, layer.experts, -1, shape[-1]) if packed else own
    terms = low_rank_terms(weight)
    if terms is None:
        value = _on_each(host, layer, weight, stacked)
    else:
        value = stacked
        for left, right, scale in terms:
            assert scale.number is not None
            factors = (_each(host, layer, e) for e in (left, right))
            product = host.call(torch.matmul, *factors)
            product = host.call("transpose", product, 1, 2) if layer.kind.transposed else product
            value = host.call(torch.add, value, product, alpha=scale.number.value(host.edit.sizes))
    return host.call("view", value, *shape) if packed else value


def _each(host: NodeHost, layer: Layer, e: Expression) -> fx.Node:
    return host.leaf(e) if e.op == "param" else _on_each(host, layer, e, None)


def _on_each(host: NodeHost, layer: Layer, e: Expression, stacked: fx.Node | None) -> fx.Node:
    """``e`` for every expert, of which ``stacked`` are the weights; these come as they are held."""
    leaves = sorted((leaf for leaf in e.leaves if leaf.op == "param"), key=str)
    values = [host.leaf(leaf) for leaf in leaves]
    if stacked is not None:
        leaves, values = [operand("W", ()), *leaves], [stacked, *values]
    graph = fx.Graph()
    given = {leaf: graph.placeholder(f"value_{i}") for i, leaf in enumerate(leaves)}
    result = Emitter(FunctionHost(graph, given), layer, host.edit.sizes).emit(e)
    turned = stacked is not None and layer.kind.transposed
    graph.output(graph.call_function(torch.t, (result,)) if turned else result)
    return host.call(on_each, host.function(graph, FUNCTION), *values)


def on_each(function: fx.GraphModule, *values: Tensor) -> Tensor:
    """``function`` of the values of each expert."""
    return torch.vmap(function)(*values)


def on_one_after_another(function: fx.GraphModule, *values: Tensor) -> Tensor:
    """The same in operators, where `torch.vmap` cannot be traced: in an exported program."""
    return torch.stack([function(*each) for each in zip(*values, strict=True)])
