"""What stands around the blocks: norms, embeddings, heads."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.anatomy.graph import Graph, Linear
from surgery.anatomy.operators import plain
from surgery.anatomy.record import Call, Key, Op
from surgery.anatomy.site import Port, Site, parameter_site
from surgery.anatomy.walk import LIGHT, ahead, back


def module_ports(graph: Graph, path: str) -> tuple[Port, Port]:
    """Where a called module takes and gives its hidden states."""
    calls = [call for call in graph.record.calls_of.get(path, ()) if not call.virtual]
    if not calls:
        return Port(path, "input"), Port(path, "output")
    name, key, _ = main_input(graph, calls[0]) or (None, None, 0)
    leaving = main_output(graph, calls[0])
    return Port(path, "input", name, key), Port(
        path, "output", None, leaving[0] if leaving else None
    )


def main_input(graph: Graph, call: Call) -> tuple[str, Key, int] | None:
    """The first floating-point tensor a call was given, else its first tensor."""
    given = [(name, key, v) for name, values in call.inputs.items() for key, v in values]
    floats = [item for item in given if graph.record.dtypes[item[2]].is_floating_point]
    return next(iter((*floats, *given)), None)


def main_output(graph: Graph, call: Call) -> tuple[Key, int] | None:
    """The first floating-point tensor a call returned, else its first tensor."""
    dtypes = graph.record.dtypes
    floats = [item for item in call.outputs if dtypes[item[1]].is_floating_point]
    return next(iter((*floats, *call.outputs)), None)


def norms(graph: Graph) -> Iterator[Site]:
    """Modules that are a norm."""
    for op in graph.ops:
        if graph.kinds[op.index] not in ("norm", "batch_norm"):
            continue
        call = graph.record.calls[op.call]
        if not call.virtual and op.outputs[0] in (value for _, value in call.outputs):
            yield _module(graph, call.path, "norm")


def embeddings(graph: Graph) -> Iterator[Site]:
    """Lookups that become part of the hidden states, and convolutions that cut the input up."""
    carrying = LIGHT | {"norm", "activation", "conv", "batch_norm"}
    attends = "core" in graph.kinds
    for op in graph.ops:
        kind = graph.kinds[op.index]
        if kind == "embedding":
            after = ahead(graph, op.outputs, carrying)
            if any(graph.kinds[reader.index] == "linear" for reader in after):
                yield _owner(graph, op)
        elif kind in ("conv", "linear") and attends and _patches(graph, op):
            yield _owner(graph, op)


def _patches(graph: Graph, op: Op) -> bool:
    """Whether ``op`` is a convolution over the model's input in steps as wide as its kernel."""
    if not plain(op.name).startswith("conv") and graph.kinds[op.index] == "linear":
        return False
    calls = graph.record.calls
    module = graph.paths.modules.get(calls[op.call].path)
    kernel, stride = getattr(module, "kernel_size", None), getattr(module, "stride", None)
    if kernel is None or kernel != stride:
        return False
    given = graph.record.arguments
    sources = {graph.unshaped(op.inputs[0]), op.inputs[0]}
    sources.update(v for o in back(graph, op.inputs[:1], LIGHT) for v in o.inputs)
    return bool(sources & given)


def heads(graph: Graph, taken: set[int]) -> Iterator[Linear]:
    """Linears whose result, at most scaled, capped or made a distribution, is the model's."""
    results = {value for _, value in graph.record.calls[0].outputs}
    for index, linear in graph.linears.items():
        if index in taken:
            continue
        reached = {linear.output}
        for op in ahead(graph, [linear.output], LIGHT | {"softmax", "activation"}):
            kind = graph.kinds[op.index]
            carried = any(value in reached for value in op.inputs)
            if carried and (kind in LIGHT or kind == "softmax" or _caps(graph, op)):
                reached.update(op.outputs)
        if reached & results:
            yield linear


def _caps(graph: Graph, op: Op) -> bool:
    """`cap · tanh(x / cap)`, a bound on logits."""
    before = graph.maker(op.inputs[0]) if op.inputs else None
    scaled = before is not None and graph.kinds[before.index] in ("div", "mul")
    after = [graph.kinds[index] for index in graph.consumers[op.outputs[0]]]
    return plain(op.name) == "tanh" and scaled and after == ["mul"]


def _owner(graph: Graph, op: Op) -> Site:
    call = graph.record.calls[op.call]
    if not call.virtual and any(value in op.outputs for _, value in call.outputs):
        return _module(graph, call.path, "embedding")
    named = [graph.weights[value] for value in op.inputs if value in graph.weights]
    if named:
        paths = graph.paths
        return parameter_site(named[0], paths.of(paths.parameters[named[0]]))
    return _module(graph, call.path, "embedding")


def _module(graph: Graph, path: str, role: str) -> Site:
    entry, exit = module_ports(graph, path)
    return Site(path, graph.paths.of(graph.paths.modules[path]), "module", role, None, entry, exit)
