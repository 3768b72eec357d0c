"""The places of a model by role, read from its graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from surgery.anatomy.attention import Attention, attentions
from surgery.anatomy.experts import Routed, router_of, routed_experts
from surgery.anatomy.feedforward import FeedForward, feed_forwards
from surgery.anatomy.graph import Graph, Linear
from surgery.anatomy.layers import Layers, find_layers
from surgery.anatomy.operators import plain
from surgery.anatomy.outer import embeddings, heads, module_ports, norms
from surgery.anatomy.place import Place, linear_ports, place_site, serving
from surgery.anatomy.record import Call, Value
from surgery.anatomy.site import Site, parameter_site


@dataclass(frozen=True)
class Roles:
    """Sites by role, and the layers they were told to be in."""

    places: dict[str, tuple[Site, ...]]
    layers: Layers


class Reader:
    """Collects the sites of one model, role by role."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.sites: dict[str, dict[str, Site]] = {}
        self.sums: dict[tuple[str, str], int] = {}
        self.taken: set[int] = set()

    def read(self) -> Roles:
        graph = self.graph
        for attention in attentions(graph):
            self.attention(attention)
        blocks = feed_forwards(graph, self.taken)
        for group in _grouped(blocks):
            self.feed_forward(group)
        called = list(graph.record.calls_of)
        layers = find_layers(
            self.anchors("attention"), self.anchors("mlp"), called, graph.paths
        )
        for role, found in (("norm", norms(graph)), ("embedding", embeddings(graph))):
            for site in found:
                self.add(role, site)
        for linear in heads(graph, self.taken):
            if layers.holding(linear.path) is None:
                self.linear("head", linear)
        for path in layers.index:
            self.add("layer", self.layer(path))
        return Roles(self.finished(layers), layers)

    def attention(self, found: Attention) -> None:
        """One core: its linears, and the place they make up."""
        self.taken.update(linear.op for linear in found.linears)
        if found.out is not None:
            self.taken.add(found.out.op)
            self.linear("o", found.out)
        if found.core.whole:
            self.multi_head(found)
        else:
            self.queries(found)
        core = found.core
        entry = found.q[0].input if found.q else core.query
        exit = found.out.output if found.out is not None else core.output
        last = (found.out,) if found.out is not None else ()
        ops = [core.op, *(x.op for x in (*found.q, *found.v, *last))]
        place = Place("attention", found.linears and found.q, last, entry, exit)
        place.within = self.graph.common(ops)
        self.place(place.join(self.graph), "cross" if found.crossed else "self")

    def queries(self, found: Attention) -> None:
        """Queries, keys and values; a linear that serves several has a role of its own."""
        q, k, v = ({linear.path for linear in part} for part in (found.q, found.k, found.v))
        for linear in found.linears:
            serves = "".join(
                name for name, part in (("q", q), ("k", k), ("v", v)) if linear.path in part
            )
            alone = {"q": q, "k": k, "v": v}.get(serves)
            if serves in ("qkv", "kv") or (alone is not None and len(alone) == 1):
                self.linear(serves, linear)

    def multi_head(self, found: Attention) -> None:
        """`nn.MultiheadAttention` never calls its projections: they are parameters."""
        op = self.graph.ops[found.core.op]
        names = {
            self.graph.weights.get(item.number, "")
            for item in (*op.args, *op.kwargs.values())
            if isinstance(item, Value)
        }
        for name in names:
            leaf = name.rpartition(".")[2]
            role = {"in_proj_weight": "qkv", "q_proj_weight": "q", "k_proj_weight": "k"}.get(leaf)
            role = role or {"v_proj_weight": "v", "weight": "o"}.get(leaf)
            if role is not None:
                self.add(role, self.parameter(name))

    def feed_forward(self, group: list[FeedForward]) -> None:
        """Blocks that meet in one sum: experts, or just one."""
        graph = self.graph
        for block in group:
            self.taken.update(linear.op for linear in (*block.first, block.down))
            for role, found in (
                ("up", block.up),
                ("gate", block.gate),
                ("gate_up", block.fused),
                ("down", (block.down,)),
            ):
                if len({linear.path for linear in found}) == 1:
                    self.linear(role, found[0])
        first = tuple(linear for block in group for linear in block.first)
        last = tuple(block.down for block in group)
        ops = [linear.op for linear in (*first, *last)]
        lead = group[0]
        place = Place("mlp", first, last, lead.first[0].input, lead.down.output)
        place.sum, place.stream = lead.sum, lead.stream
        place.within = graph.common(ops)
        call = serving(graph, place)
        router = router_of(graph, place, self.taken)
        if router is not None:
            linear, call = router
            self.taken.add(linear.op)
            self.linear("router", linear)
            for site in routed_experts(graph, Routed(call, tuple(group))):
                self.extend(site)
        elif call is None and len(group) > 1:
            for block in group:
                self.feed_forward([block])
            return
        self.site_of(place, call)

    def extend(self, found: tuple[str, Site]) -> None:
        self.add(*found)

    def place(self, place: Place, variant: str) -> None:
        site = self.site_of(place, serving(self.graph, place))
        self.add(f"{place.role}.{variant}", site)

    def site_of(self, place: Place, call: Call | None) -> Site:
        site = place_site(self.graph, place, call)
        self.sums.setdefault((place.role, site.path), place.sum)
        self.add(place.role, site)
        return site

    def linear(self, role: str, linear: Linear) -> None:
        """Add a linear, as the module it is, or as the parameter that is all there is of it."""
        if linear.module is not None:
            entry, exit = linear_ports(self.graph, linear)
            paths = self.graph.paths.of(self.graph.paths.modules[linear.module])
            self.add(role, Site(linear.module, paths, "module", role, None, entry, exit))
        elif linear.parameter is not None:
            self.add(role, self.parameter(linear.parameter))

    def parameter(self, name: str) -> Site:
        paths = self.graph.paths
        return parameter_site(name, paths.of(paths.parameters[name]))

    def layer(self, path: str) -> Site:
        """A layer takes and gives the hidden states: its first float in, its first float out."""
        entry, exit = module_ports(self.graph, path)
        paths = self.graph.paths.of(self.graph.paths.modules[path])
        return Site(path, paths, "module", "layer", None, entry, exit)

    def add(self, role: str, site: Site) -> None:
        self.sites.setdefault(role, {}).setdefault(site.path, replace(site, role=role))

    def anchors(self, role: str) -> list[str]:
        """Paths to tell layers by: a region lies in the module around its ends."""
        return [
            site.path.partition("[")[0] + ("." if site.kind == "region" else "")
            for site in self.sites.get(role, {}).values()
        ]

    def finished(self, layers: Layers) -> dict[str, tuple[Site, ...]]:
        """Layers and norms filled in; sites in the order they ran."""
        result: dict[str, tuple[Site, ...]] = {}
        for role, found in self.sites.items():
            sites = [self.placed(role, site, layers) for site in found.values()]
            if role == "layer":
                sites.sort(key=lambda site: list(layers.index).index(site.path))
            result[role] = tuple(sites)
        return result

    def placed(self, role: str, site: Site, layers: Layers) -> Site:
        layer = layers.holding(site.spans[0])
        index = layers.index[layer] if layer is not None else None
        total = self.sums.get((role.partition(".")[0], site.path), -1)
        norm = self.norm_after(total, layer) if total >= 0 else None
        return replace(site, layer=index, norm=norm)

    def norm_after(self, total: int, layer: str | None) -> str | None:
        """The norm that alone reads a residual sum, in the same layer: post-norm."""
        graph = self.graph
        readers: list[int] = []
        waiting = list(graph.ops[total].outputs)
        for value in waiting:
            for index in graph.consumers[value]:
                if graph.same(graph.ops[index].outputs[0]) == graph.same(value):
                    waiting += graph.ops[index].outputs
                else:
                    readers.append(index)
        if len(readers) != 1 or graph.kinds[readers[0]] != "norm":
            return None
        path = graph.record.calls[graph.ops[readers[0]].call].path
        inside = layer is None or path.startswith(f"{layer}.")
        return path if inside and plain(graph.ops[readers[0]].name) == "norm" else None


def _grouped(blocks: Iterable[FeedForward]) -> list[list[FeedForward]]:
    groups: dict[int, list[FeedForward]] = {}
    for block in blocks:
        groups.setdefault(block.sum, []).append(block)
    return list(groups.values())
