"""Mixtures of experts: the router, the experts, and those of them that did not run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from surgery.anatomy.feedforward import FeedForward
from surgery.anatomy.graph import Graph, Linear
from surgery.anatomy.outer import module_ports
from surgery.anatomy.place import Place, serves
from surgery.anatomy.record import Call
from surgery.anatomy.site import Site, covers, module_site
from surgery.anatomy.walk import LIGHT, ahead


@dataclass(frozen=True)
class Routed:
    """The call of a mixture, and the feed-forwards that ran in it."""

    call: Call
    blocks: tuple[FeedForward, ...]


def router_of(graph: Graph, place: Place, taken: set[int]) -> tuple[Linear, Call] | None:
    """The linear that chooses among experts, and the module around it and them."""
    used = {linear.op for linear in (*place.first, *place.last)}
    for number in reversed(place.within):
        call = graph.record.calls[number]
        if call.number == 0 or not serves(graph, place, call):
            continue
        for index, linear in graph.linears.items():
            inside = call.number in graph.stack(index)
            if inside and index not in taken | used and _chooses(graph, linear):
                return linear, call
    return None


def _chooses(graph: Graph, linear: Linear) -> bool:
    through = LIGHT | {"softmax", "activation"}
    after = ahead(graph, [linear.output], through)
    return any(graph.kinds[op.index] == "choice" for op in after)


def routed_experts(graph: Graph, routed: Routed) -> Iterator[tuple[str, Site]]:
    """Sites of the experts and of their list; with the linears of experts that stayed idle."""
    for block in routed.blocks:
        linears = (*block.first, block.down)
        if all(linear.module is None for linear in linears):
            owner = block.down.path.rpartition(".")[0]
            if owner in graph.paths.modules and _is_stack(graph, block.down):
                yield "experts", _ported(graph, owner)
            continue
        expert = _expert(graph, routed.call, [linear.op for linear in linears])
        if expert is None:
            continue
        parent = expert.rpartition(".")[0]
        yield "experts", _ported(graph, parent)
        for sibling in _siblings(graph, expert):
            yield "expert", _ported(graph, sibling)
            for role, found in (("up", block.up), ("gate", block.gate), ("down", (block.down,))):
                for linear in found[:1]:
                    path = sibling + linear.path[len(expert) :]
                    if covers(expert, linear.path) and path in graph.paths.modules:
                        yield role, _ported(graph, path)


def _is_stack(graph: Graph, linear: Linear) -> bool:
    parameter = graph.paths.parameters.get(linear.parameter or "")
    return parameter is not None and parameter.dim() > 2


def _expert(graph: Graph, mixture: Call, ops: list[int]) -> str | None:
    """The numbered module around one expert's linears."""
    for number in reversed(graph.common(ops)):
        path = graph.record.calls[number].path
        if path == mixture.path:
            return None
        if path.rpartition(".")[2].isdigit():
            return path
    return None


def _siblings(graph: Graph, expert: str) -> list[str]:
    parent, _, _ = expert.rpartition(".")
    kind = type(graph.paths.modules[expert])
    children = graph.paths.modules[parent].named_children()
    return [f"{parent}.{name}" for name, child in children if type(child) is kind]


def _ported(graph: Graph, path: str) -> Site:
    if path not in graph.record.calls_of:
        # An idle expert's ports are those of its class; what they carry was not seen.
        return module_site(path, graph.paths.of(graph.paths.modules[path]))
    entry, exit = module_ports(graph, path)
    paths = graph.paths.of(graph.paths.modules[path])
    return Site(path, paths, "module", None, None, entry, exit)
