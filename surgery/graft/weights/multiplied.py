"""Layers that are read and never called, changed where their weight is multiplied with.

A module that multiplies with a weight itself gets an object in its place: see
:class:`~surgery.graft.weights.read.ReadWeight`.
"""

from __future__ import annotations

from torch import fx

from surgery.graft.design import Part
from surgery.graft.generate import SELF
from surgery.graft.graphs import calls, states
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.nodes import GraphHost
from surgery.graft.passing import look
from surgery.graft.weights.change import again, with_weight
from surgery.graft.weights.read import read_weight
from surgery.layers.kind import Layer, LayerKind, named_rank
from surgery.rules.expression import Expression


def write_multiplied(
    part: Part, layer: Layer, whole: str | None = None
) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """The graph of what is read as the weight, by name, and of the function that it calls.

    The function gives a layer's result from its input and what the base makes of it. ``whole``
    names the function that gives the changed weight, for uses that are no product.
    """
    function = fx.Graph()
    x, y, product = (function.placeholder(name) for name in ("x", "y", "product"))
    host = _ProductHost(function, layer, dict(part.slots), x, y, product)
    rank = named_rank(part.program.named_dims, layer) if layer.is_own else None
    if rank is not None:
        host.call(states.check_rank, x, rank, "what the weight is multiplied with")
    if part.site.states.length_first:
        host.x, host.y = (host.call("transpose", value, 0, 1) for value in (x, y))
    emitter = Emitter(host, layer, dict(part.sizes), part.site.states.features, layer.states)
    value = emitter.emit(part.program.result)
    function.output(host.call("transpose", value, 0, 1) if part.site.states.length_first else value)
    name = f"{layer.weight}_product"
    graph = fx.Graph()
    me = graph.get_attr(SELF)
    own = graph.call_function(calls.own_parameter, (me, layer.weight))
    offset = layer.offset if layer.is_own and layer.bias else None
    form = (layer.kind.name, layer.out, layer.spatial, offset, whole)
    graph.output(graph.call_function(read_weight, (me, name, own, form)))
    return {layer.weight: graph}, {name: function}


class ReadHost(GraphHost):
    """Reads a layer's own tensors beneath the properties that replace them."""

    def __init__(self, graph: fx.Graph, layer: Layer):
        super().__init__(graph)
        self.layer = layer

    def leaf(self, expression: Expression) -> fx.Node:
        if expression.op == "param":
            return self.graph.get_attr(expression.name)
        name = self.layer.names[expression.name]
        return self.call(calls.own_parameter, self.graph.get_attr(SELF), name)

    def training(self) -> fx.Node:
        return self.graph.get_attr("training")


class _ProductHost(ReadHost):
    """Has the input of a product and its result at hand, and the product itself."""

    def __init__(
        self,
        graph: fx.Graph,
        layer: Layer,
        slots: dict[str, str],
        x: fx.Node,
        y: fx.Node,
        product: fx.Node,
    ):
        super().__init__(graph, layer)
        self.slots = slots
        self.x = x
        self.y = y
        self.running = product

    def leaf(self, expression: Expression) -> fx.Node:
        return self.x if expression.name == "x" else super().leaf(expression)

    def base(self, x: fx.Node) -> fx.Node:
        return self.y if x is self.x else self.call(again, self.running, x)

    def product(
        self, kind: LayerKind, x: fx.Node, weight: fx.Node, bias: fx.Node | None
    ) -> fx.Node:
        return self.call(with_weight, self.running, x, weight, bias)

    def module(self) -> fx.Node:
        return self.graph.get_attr(SELF)

    def real(self, states: fx.Node) -> fx.Node | None:
        if "real" not in self.slots:
            return None
        return self.call(look, self.graph.get_attr(self.slots["real"]), states)
