"""All roles of a model, told from the structure of what one forward did."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.dims import Sizes
from surgery.anatomy.graph import (
    ModuleCall,
    Recording,
    argument_of,
    call_of,
    index_of,
    maker_of,
    outputs_of,
    shape_of,
)
from surgery.anatomy.paths import Paths
from surgery.anatomy.roles.cores import cores
from surgery.anatomy.roles.exits import Exits
from surgery.anatomy.roles.experts import Mixture, alike, expert_feed_forwards, mixtures
from surgery.anatomy.roles.feedforward import FeedForward, feed_forwards
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.heads import embeddings, heads
from surgery.anatomy.roles.keys import Keys
from surgery.anatomy.roles.layers import find_layers
from surgery.anatomy.roles.linears import RecordedLinear, linears
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.roles.projections import Attention, Projections
from surgery.anatomy.roles.regions import Border
from surgery.anatomy.roles.residual import sums
from surgery.anatomy.roles.scores import recorded_scores
from surgery.anatomy.roles.sites import SitesByRole
from surgery.anatomy.roles.slices import Slices
from surgery.anatomy.roles.tokens import Stacks
from surgery.anatomy.site import Site, WholeModule, covers
from surgery.rules.rows import rows_of

_WHOLE = {
    "q": (18, "q_proj_weight"),
    "k": (19, "k_proj_weight"),
    "v": (20, "v_proj_weight"),
    "o": (11, "out_proj_weight"),
}
"""Where `multi_head_attention_forward` is given the weights of the projections."""


class Reading:
    """The roles in one record; ``places`` are the sites of each in model order."""

    def __init__(self, recording: Recording, paths: Paths, sizes: Sizes | None = None):
        self.recording = recording
        self.paths = paths
        self.flow = flow = Flow(recording, paths, sizes)
        self.linears = linears(flow)
        self.sums = sums(flow, self.linears)
        self.ports = Ports(flow, self.sums)
        scores = recorded_scores(flow)
        found = list(cores(flow, self.linears, scores))
        self.keys = Keys(flow, scores)
        projections = Projections(flow, self.linears, found, self.sums)
        self.attentions = [projections.around(core) for core in found]
        self.mixtures = list(mixtures(flow, self.linears, self.ports))
        outputs = {a.o.op for a in self.attentions if a.o is not None}
        self.feed_forwards = list(feed_forwards(flow, self.linears, self.sums, outputs))
        self.feed_forwards += expert_feed_forwards(
            flow, self.linears, self.mixtures, {f.down.op for f in self.feed_forwards}
        )
        adds = [op for item in self.sums if (op := maker_of(item.result)) is not None]
        beside = [
            *(f.down.path for f in self.feed_forwards if f.down.path),
            *(m.call.path for m in self.mixtures),
        ]
        attended = [
            a.o.path if a.o and a.o.path else self.recording.calls[call_of(a.core.ops[-1])].path
            for a in self.attentions
        ]
        self.layers = find_layers(flow, attended, beside, adds)
        self.sites = SitesByRole(flow, self.linears, self.ports, self.layers)
        self.slices = Slices(flow)
        self._collect()
        self.places = self.sites.in_order()

    def _collect(self) -> None:
        for attention in self.attentions:
            self._attention(attention)
        expert_paths = {path for mixture in self.mixtures for path in mixture.expert}
        mixed = {mixture.call.path for mixture in self.mixtures if mixture.joins}
        for found in self.feed_forwards:
            self._feed_forward(found, expert_paths, mixed)
        for mixture in self.mixtures:
            self._mixture(mixture)
        for path in self.layers:
            self.sites.add_called(path, "layer")
        for call in self.flow.norms.values():
            self.sites.add_called(call.path, "norm")
        for path in embeddings(self.flow):
            self.sites.add_called(path, "embedding")
        exits = Exits(self.flow, self.ports, self.layers, [a.core for a in self.attentions])
        stacks = Stacks(self.flow, self.ports, exits)
        for site in stacks.sites():
            self.sites.add(site, "tokens")
        self.obstacles = {"tokens": stacks.obstacle} if stacks.obstacle else {}
        taken = {path for sites in self.sites.found.values() for path in sites}
        for linear in heads(self.flow, self.linears):
            if linear.path and linear.path not in taken:
                self.sites.add_called(linear.path, "head")
        for linear in self.linears.values():
            alone = linear.call is not None and len(linear.call.outputs) == 1
            routes = linear.path in self.sites.found["router"]
            if alone and linear.pointwise and not routes and linear.op in self.flow.felt:
                self.sites.add_linear(linear, "linear")
        for role, site in alike(self.mixtures, self.sites.found, self.paths.modules):
            whole = isinstance(site.operator, WholeModule)
            own = self.paths.module(site.path).paths if whole else site.paths
            self.sites.add(replace(site, paths=own), role)
        for expert in (path for mixture in self.mixtures for path in mixture.expert):
            self.sites.add_called(expert, "expert")

    def _attention(self, attention: Attention) -> None:
        core = attention.core
        if core.whole:
            self._whole(attention)
            return
        for index, role in attention.roles.items():
            linear = self.linears[index]
            if len(role) > 1 and self._opened(linear, role, attention):
                continue
            self.sites.add_linear(linear, role)
            if len(role) > 1 and linear.call is not None:
                self._served(linear, linear.call, role, attention)
        last, firsts = attention.o, attention.firsts
        site: Site | None = None
        if last is not None:
            self.sites.add_linear(last, "o")
        if core.ops[-1] not in self.flow.felt:
            return  # CANINE, LiLT: it changes nothing that the model returns
        if last is not None and firsts:
            border = Border(
                firsts[0].source,
                last.result,
                tuple(sorted((first.op for first in firsts), key=index_of)),
                last.op,
                firsts[0].call,
                last.call,
                () if attention.cross else tuple(first.source for first in firsts),
            )
            site = self.sites.regions.site(border, "attention")
        site = site or self._held(attention)
        if site is not None:
            self._both(site, attention)

    def _core(self, attention: Attention) -> AttentionCore:
        queries = (self.linears[i].result for i, role in attention.roles.items() if "q" in role)
        return self.keys.described(attention.core, next(queries, None))

    def _opened(self, linear: RecordedLinear, served: str, attention: Attention) -> bool:
        """Slices of a packed weight whose module was flattened: `nn.MultiheadAttention`, exported."""
        owner, _, name = linear.weight.rpartition(".")
        calls = self.recording.calls_of.get(owner)
        if linear.call is not None or name == "weight" or not calls or not calls[0].virtual:
            return False
        found = self.slices.projections(linear, served, attention.core).apart
        self.sites.add_slices(calls[0], found, name)
        return bool(found)

    def _served(
        self, linear: RecordedLinear, call: ModuleCall, served: str, attention: Attention
    ) -> None:
        """What of a layer each of the operands that it serves is made of: some outputs, or all."""
        reach = self.slices.projections(linear, served, attention.core)
        if reach.apart:
            self.sites.add_slices(call, reach.apart)
            return
        sizes = self._core(attention).features
        made = shape_of(linear.result)[-1]
        # ZAYA: of operands mixed after they were projected, a layer is the one it has the size of.
        own = [name for name in reach.alike if sizes[name] == made]
        for name in own or reach.alike:
            self.sites.add_call(call, name)

    def _held(self, attention: Attention) -> Site | None:
        """The module that runs an attention, a sum and a norm around it (XLNet), but no layer."""
        ends = [attention.o.op] if attention.o is not None else []
        firsts = [first.op for first in attention.firsts]
        call = self.flow.lowest([*firsts, *attention.core.ops, *ends])
        others = [*self.layers, *(f.down.path for f in self.feed_forwards if f.down.path)]
        if not call.path or any(covers(call.path, other) for other in others):
            return None
        return self.sites.described(call, "attention")

    def _whole(self, attention: Attention) -> None:
        op = attention.core.ops[0]
        call = self.recording.calls[call_of(op)]
        for role, (position, keyword) in _WHOLE.items():
            given = argument_of(op, position, keyword)
            if not isinstance(given, Node):
                continue
            owner, _, name = self.recording.parameters.get(given, "").rpartition(".")
            if name == "weight" and owner != call.path and covers(call.path, owner):
                self.sites.add(replace(self.paths.module(owner), role=role), role)
        self._packed(call, op)
        # The states may be put together in the module that attends, as those of a pooled one are.
        entry = self.ports.input(call, attention.core.q)
        exit = self.ports.output(call, attention.core.result)
        if entry is not None and exit is not None:
            self._both(self.sites.regions.module(call, "attention", entry, exit), attention)

    def _packed(self, call: ModuleCall, op: Node) -> None:
        """Queries, keys and values whose weights `multi_head_attention_forward` is given as one."""
        given = argument_of(op, 5, "in_proj_weight")
        if not isinstance(given, Node):
            return
        owner, _, name = self.recording.parameters.get(given, "").rpartition(".")
        if owner == call.path and name:
            total = shape_of(given)[0]
            thirds = {r: rows_of(r, total, self._third(i, total)) for i, r in enumerate("qkv")}
            self.sites.add_slices(call, {role: rows for role, rows in thirds.items() if rows}, name)

    @staticmethod
    def _third(index: int, total: int) -> range:
        return range(index * total // 3, (index + 1) * total // 3)

    def _both(self, site: Site, attention: Attention) -> None:
        one = core = self._core(attention)
        for role in ("attention", "attention.self", "attention.cross"):
            known = self.sites.found[role].get(site.path)
            other = known.core if known else None
            if known and other and (other.path, other.order) != (one.path, one.order):
                core = _together(other, one)
                self.sites.found[role][site.path] = known.attending(core)
        site = site.attending(core)
        self.sites.add(site, "attention")
        kind = "attention.cross" if attention.cross else "attention.self"
        self.sites.add(replace(site, role=kind), kind)

    def _feed_forward(self, found: FeedForward, expert_paths: set[str], mixed: set[str]) -> None:
        for index, role in found.roles.items():
            linear = self.linears[index]
            self.sites.add_linear(linear, role)
            if role == "gate_up" and linear.call is not None:
                self.sites.add_slices(linear.call, self.slices.feed_forward(linear, found))
        firsts = [self.linears[index] for index, role in found.roles.items() if role != "down"]
        ops = tuple(sorted((f.op for f in firsts), key=index_of))
        first = min(firsts, key=lambda f: index_of(f.op))
        down = found.down
        if down.call is None:
            return
        if found.product is not None:
            site = self._multiplied(found.product, (*ops, down.op))
        else:
            border = Border(found.source, down.result, ops, down.op, first.call, down.call)
            site = self.sites.regions.site(border, "mlp")
        if site is None:
            return
        holder = site.spans[0]
        inside = any(covers(path, holder) and path != holder for path in mixed)
        if inside or any(covers(path, holder) for path in expert_paths):
            self.sites.add(replace(site, role="expert"), "expert")
        else:
            self.sites.add(site, "mlp")

    def _multiplied(self, product: Node, ops: tuple[Node, ...]) -> Site | None:
        """The module that runs a feed-forward and ends with ``product``, of it and a gate (RWKV)."""
        call = self.flow.lowest((*ops, product))
        entry, exit = self.ports.main_input(call), self.ports.output(call, outputs_of(product)[0])
        if not call.path or entry is None or exit is None:
            return None
        return self.sites.regions.module(call, "mlp", entry, exit)

    def _mixture(self, mixture: Mixture) -> None:
        entry, exit = self.ports.main_input(mixture.call), self.ports.main_output(mixture.call)
        call = mixture.call
        lasts = [index_of(a.core.ops[-1]) for a in self.attentions]
        attends = any(call.first <= last <= call.last for last in lasts)
        if mixture.joins and not attends and entry is not None and exit is not None:
            self.sites.add(self.sites.regions.module(mixture.call, "mlp", entry, exit), "mlp")
        self.sites.add_called(mixture.router, "router")
        if mixture.experts is not None:
            self.sites.add_called(mixture.experts, "experts")
        for path in mixture.expert:
            if path in self.recording.calls_of and path not in self.sites.found["expert"]:
                self.sites.add_called(path, "expert")


def _together(core: AttentionCore, another: AttentionCore) -> AttentionCore:
    """Two cores of one place as one, if what changes the one fits the other."""
    if another in core.each:
        return core
    one, other = (
        (c.path, c.how, c.query_heads, c.heads, c.keys, c.values) for c in (core, another)
    )
    why = core.obstacle or another.obstacle
    if one != other:
        why = why or "it runs several attentions of different sizes, and this is of one"
    fixed = core.fixed or another.fixed
    return replace(core, obstacle=why, fixed=fixed, others=(*core.others, another))
