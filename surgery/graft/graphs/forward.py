"""The graph of one adapted module's forward.

Own methods of the module come first, then those of regions that end at it. What a region needs
from elsewhere arrives in slots, which the modules where it passes write to.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from surgery.anatomy.site import Port
from surgery.graft.channel import put
from surgery.graft.design import Built, Design
from surgery.graft.fastpath import emptied
from surgery.graft.graphs import calls
from surgery.graft.graphs.builder import ForwardBuilder, ModuleHost, emitter_for
from surgery.graft.graphs.passes import optimise
from surgery.graft.tokens.stacks import begin, end
from surgery.layers import Layer


def write_forward(cls: type[nn.Module], layer: Layer | None, design: Design) -> Built:
    """The forward of a module of class ``cls`` with ``design`` grafted on it."""
    builder = ForwardBuilder(cls, layer, plain=layer is not None and layer.native)
    for slot, port in design.writes:
        if port.side == "input":
            builder.call(put, builder.attribute(slot), builder.input(port))
    for stack in design.stacks:
        begin(builder, stack)
    value: fx.Node | None = None
    exit_port: Port | None = None
    for part in design.cores:
        builder.change_core(part)
    for part in design.parts:
        builder.check_rank(part)
        if value is None and not part.own:
            value = builder.base_unchanged()
            if not builder.plain:
                value = builder.output(part.site.exit)
        emitter = emitter_for(builder, part, value)
        result = emitter.emit(part.program.result)
        value = emitter.host.leave(result) if isinstance(emitter.host, ModuleHost) else result
        exit_port = part.site.exit
    result = value if value is not None else builder.base_unchanged()
    if value is not None and builder.is_raw(value):
        result = builder.raw or value
    elif not builder.plain and value is not None and exit_port and exit_port.index is not None:
        result = builder.call(calls.with_first, builder.raw, exit_port.index, value)
    for stack in design.stacks:
        result = end(builder, stack, result)
    for slot, port in design.writes:
        if port.side == "output":
            seen = (
                result
                if builder.plain or port.index is None
                else builder.call(calls.first, result, port.index)
            )
            builder.call(put, builder.attribute(slot), seen)
    if design.empties is not None:
        given = (builder.self_node, builder.args, builder.kwargs)
        result = builder.call(emptied, *given, result, design.empties)
    builder.graph.output(result)
    optimise(builder.graph)
    builder.graph.eliminate_dead_code(is_impure_node=_acts)
    return Built(builder.graph, builder.functions, builder.cores)


def _acts(node: fx.Node) -> bool:
    """Whether ``node`` does more than pick a value, and has to run even if nobody reads it."""
    picks = node.target in (calls.take, calls.first, operator.getitem)
    return not picks and node.op != "get_attr"
