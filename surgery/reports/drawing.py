"""A model drawn: modules as boxes within boxes, values as arrows, what changes written where it does.

This is plain data, which :mod:`surgery.reports.dot` and :mod:`surgery.reports.page` write down. The
boxes within one stand in layers: an arrow leads from a layer to a later one, but where values go
round in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Literal

from torch import nn

from surgery.anatomy.dataflow import FlowNode, dataflow, operators
from surgery.anatomy.read import Anatomy
from surgery.anatomy.site import Region, Site, covers
from surgery.reports.folded import StandIns, unlike
from surgery.reports.marks import NOTHING, Marks
from surgery.reports.tree import Branch, Extra, tree_of

if TYPE_CHECKING:
    import networkx as nx

Shape = Literal["module", "part", "input", "output", "junction"]
LISTS = frozenset(("ModuleList", "ModuleDict"))
"""Modules that only hold others."""


@dataclass(frozen=True)
class Arrow:
    """A value that passes from one box to another of the same layer of nesting, by their ids.

    One that closes a circle is ``back``; ``spans`` ties a region to the modules that it starts and
    ends with.
    """

    source: str
    target: str
    kind: Literal["value", "back", "spans"] = "value"


@dataclass(frozen=True)
class Box:
    """A module, or ``times`` that are alike, or another thing within one.

    ``like`` is an earlier box that reads the same, so that what is within is not drawn again. ``chained``
    ones come one after another, a single one runs again on what it gave, and ``idle`` ones run no operator of their own. ``layers`` hold the boxes within, in the order of the values.
    ``changes`` counts the notes here and within, of all that are folded.
    """

    id: str
    shape: Shape
    label: str
    names: tuple[str, ...] = ("",)
    path: str = ""
    kind: str = ""
    roles: tuple[str, ...] = ()
    elements: int = 0
    marks: Marks = NOTHING
    like: Box | None = None
    chained: bool = False
    idle: bool = False
    layers: tuple[tuple[Box, ...], ...] = ()
    arrows: tuple[Arrow, ...] = ()
    changes: int = 0

    @property
    def times(self) -> int:
        return len(self.names)

    @property
    def inner(self) -> Iterator[Box]:
        """The boxes right within this one."""
        for layer in self.layers:
            yield from layer

    @property
    def every(self) -> Iterator[Box]:
        """The box itself and all within."""
        yield self
        for box in self.inner:
            yield from box.every


@dataclass(frozen=True)
class Drawing:
    """A drawn model; ``facts`` are said above it, and ``remarks`` below."""

    title: str
    root: Box
    facts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def drawing_of(
    model: nn.Module,
    anatomy: Anatomy | None,
    sites: Iterable[Site] = (),
    marks: Mapping[str, Marks] | None = None,
) -> Box:
    """Draw ``model``; without ``anatomy`` there are no roles and no arrows.

    ``sites`` are shown even where they are no modules.
    """
    roles = anatomy.places.values() if anatomy else ()
    apart = [s for found in roles for s in found if s.is_part]
    shown = [*apart, *sites]
    tree = tree_of(model, anatomy.roles_of if anatomy else lambda _: (), shown, marks)
    flows: Mapping[str, nx.DiGraph[FlowNode]] = {}
    if anatomy is not None:
        flows = dataflow(operators(anatomy.recording), StandIns(tree).stands_for)
    given = tuple(anatomy.recording.calls[0].inputs) if anatomy else ()
    regions = {site.path: site for site in shown if isinstance(site.operator, Region)}
    return _Drawer(flows, regions, given).box(tree)


@dataclass
class _Drawer:
    flows: Mapping[str, nx.DiGraph[FlowNode]]
    regions: Mapping[str, Site]
    given: Sequence[str]
    numbers: Iterator[int] = field(default_factory=count)

    def id(self) -> str:
        return f"n{next(self.numbers)}"

    def box(self, branch: Branch, prefix: str = "", chained: bool = False) -> Box:
        """The box of a module, with all that is within it."""
        only = branch.children[0] if len(branch.children) == 1 else None
        plain = not (branch.roles or branch.extras or branch.marks != NOTHING)
        alone = len(branch.names) == 1 and not branch.label.isdigit()
        if only is not None and plain and alone and branch.kind in LISTS:
            chained = self._chained(branch.path, only.path)
            return self.box(only, f"{prefix}{branch.label}.", chained)
        whole = Box(
            self.id(),
            "module",
            prefix + (branch.label or "(the model)"),
            branch.names,
            branch.path,
            branch.kind,
            branch.roles,
            branch.elements,
            branch.marks,
            chained=chained,
        )
        return self._filled(whole, branch)

    def _filled(self, whole: Box, branch: Branch) -> Box:
        flow = self._flow(branch.path)
        boxes: dict[FlowNode, Box] = {}
        for child, like in unlike(branch):
            node = FlowNode("module", child.path)
            chained = self._chained(branch.path, child.path)
            if like is None:
                boxes[node] = self.box(child, chained=chained)
            else:
                boxes[node] = self._again(child, chained, boxes[FlowNode("module", like.path)])
        extras = {FlowNode("module", extra.path): self._part(extra) for extra in branch.extras}
        if not boxes:
            return self._closed(whole, (tuple(extras.values()),) if extras else (), ())
        if flow is None:
            parts = (tuple(extras.values()),) if extras else ()
            return self._closed(whole, (*((box,) for box in boxes.values()), *parts), ())
        for node in flow:
            if node not in boxes:
                boxes[node] = self._mark(node, flow.nodes[node]["label"], not branch.path)
        return self._layered(whole, flow, boxes, extras)

    def _flow(self, path: str) -> nx.DiGraph[FlowNode] | None:
        """The values within a module, if they pass anything that is shown."""
        import networkx as nx

        flow = self.flows.get(path)
        if flow is None or any(n.kind == "module" for n in flow):
            return flow
        return nx.DiGraph()

    def _layered(
        self,
        whole: Box,
        flow: nx.DiGraph[FlowNode],
        boxes: dict[FlowNode, Box],
        extras: dict[FlowNode, Box],
    ) -> Box:
        """``whole`` with ``boxes`` in the layers that the values between them make."""
        import networkx as nx

        arrows: dict[tuple[str, str], Arrow] = {}
        forward: nx.DiGraph[FlowNode] = nx.DiGraph()
        ran: list[FlowNode] = sorted(flow, key=lambda node: flow.nodes[node]["order"])
        forward.add_nodes_from(ran)
        for source, target, known in flow.edges(data=True):
            if source == target:
                continue
            ends = boxes[source].id, boxes[target].id
            arrows[ends] = Arrow(*ends, "back" if known["back"] else "value")
            if not known["back"]:
                forward.add_edge(source, target)
        for node in extras:
            ends = self._ends(node.name, [n for n in boxes if n.kind == "module" and n in forward])
            if ends is not None:
                forward.add_edges_from(((ends[0], node), (node, ends[1])))
                for pair in ((boxes[ends[0]], extras[node]), (extras[node], boxes[ends[1]])):
                    both = pair[0].id, pair[1].id
                    arrows[both] = Arrow(*both, "spans")
        every = {**boxes, **extras}
        layers = [tuple(every[node] for node in layer) for layer in _generations(forward)]
        aside = [box for node, box in every.items() if node not in forward]
        if aside:
            layers.append(tuple(replace(b, idle=b.shape == "module") for b in aside))
        rank = {box.id: i for i, box in enumerate(b for layer in layers for b in layer)}
        drawn = sorted(arrows.values(), key=lambda a: (rank[a.source], rank[a.target]))
        return self._closed(whole, tuple(layers), tuple(drawn))

    def _ends(self, region: str, nodes: Iterable[FlowNode]) -> tuple[FlowNode, FlowNode] | None:
        """The boxes in which a region starts and ends, if these are two."""
        site = self.regions.get(region)
        if site is None:
            return None
        found = [
            next((n for n in nodes if covers(n.name, port.path)), None)
            for port in (site.entry, site.exit)
        ]
        first, last = found
        return (first, last) if first and last and first != last else None

    def _closed(
        self, whole: Box, layers: tuple[tuple[Box, ...], ...], arrows: tuple[Arrow, ...]
    ) -> Box:
        within = sum(box.changes for layer in layers for box in layer)
        changes = whole.times * (len(whole.marks.notes) + within)
        return replace(whole, layers=layers, arrows=arrows, changes=changes)

    def _again(self, branch: Branch, chained: bool, first: Box) -> Box:
        """A module that reads as an earlier one, which is drawn."""
        label = branch.label
        changes = first.changes // first.times * len(branch.names)
        return replace(
            first,
            id=self.id(),
            label=label,
            names=branch.names,
            path=branch.path,
            like=first,
            chained=chained,
            layers=(),
            arrows=(),
            changes=changes,
        )

    def _part(self, extra: Extra) -> Box:
        return Box(
            self.id(),
            "part",
            extra.label,
            path=extra.path,
            kind="region" if extra.path in self.regions else "",
            roles=extra.roles,
            marks=extra.marks,
            changes=len(extra.marks.notes),
        )

    def _mark(self, node: FlowNode, label: str, outermost: bool) -> Box:
        """The input, the output or a junction of the values within a module."""
        assert node.kind != "module"
        if node.kind == "junction":
            return Box(self.id(), "junction", label)
        named = ", ".join(self.given) if outermost and node.kind == "input" else ""
        return Box(self.id(), node.kind, named or node.kind)

    def _chained(self, path: str, child: str) -> bool:
        """Whether those that one child stands for feed each other."""
        flow, node = self.flows.get(path), FlowNode("module", child)
        return flow is not None and flow.has_edge(node, node)


def _generations(graph: nx.DiGraph[FlowNode]) -> list[list[FlowNode]]:
    """The nodes in layers, each above all that it leads to; what needs no input is as low as can be."""
    import networkx as nx

    row = {n: i for i, layer in enumerate(nx.topological_generations(graph)) for n in layer}
    for node in graph:
        after = [row[n] for n in graph.successors(node)]
        if node.kind == "module" and after and not graph.in_degree(node):
            row[node] = min(after) - 1
    return [[n for n in graph if row[n] == i] for i in sorted(set(row.values()))]
