"""Which module's result goes where: a recorded forward as one small graph for each module.

In the graph of a module stand the modules right below it, what it is given and what it returns, and
a junction wherever its own code joins several of these values: a residual's sum, a gate's product,
an attention's core. What only reshapes, activates or passes on a value is no node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from surgery.anatomy.graph import Recording, call_of, index_of, kind_of, maker_of, readers
from surgery.anatomy.roles.operators import ATTENTIONS, PASSIVE, POINTWISE, PRODUCTS

if TYPE_CHECKING:
    import networkx as nx

INPUT, OUTPUT = "input", "output"

Place = Callable[[str], str | None]
"""The path of the module that stands for the one at a path; None where it is not shown."""

Within = tuple[tuple[str, int], ...]
"""The names of which a module's path is made, each with the number of a call."""


@dataclass(frozen=True, slots=True)
class FlowNode:
    """One thing within a module: ``name`` is the path of a module, or which values are joined."""

    kind: Literal["input", "output", "module", "junction"]
    name: str = ""


def operators(recording: Recording) -> nx.DiGraph[Any]:
    """The operators of a recording, and the values that pass between them.

    An operator is its number, in the order in which they ran; its attributes are ``kind`` and
    ``within``, the modules around it from the model in, each with the number of its call. What the model is given and what it returns
    are the nodes ``INPUT`` and ``OUTPUT``.
    """
    import networkx as nx

    found: nx.DiGraph[Any] = nx.DiGraph()
    found.add_nodes_from((INPUT, OUTPUT))
    within: dict[int, Within] = {}
    for op in recording.ops:
        call = call_of(op)
        if call not in within:
            within[call] = tuple(_within(recording, call))
        found.add_node(index_of(op), kind=kind_of(op), within=within[call])
    for value in recording.values:
        maker = maker_of(value)
        if maker is not None or value in recording.arguments:
            source = INPUT if maker is None else index_of(maker)
            found.add_edges_from((source, index_of(reader)) for reader in readers(value))
    returned = [value for _, value in recording.calls[0].outputs]
    makers = map(maker_of, returned or recording.values)
    found.add_edges_from((index_of(maker), OUTPUT) for maker in makers if maker is not None)
    return found


def _within(recording: Recording, call: int) -> Iterator[tuple[str, int]]:
    """The modules whose paths lead to that of ``call``, by their names, and the calls of these."""
    path = recording.calls[call].path
    runs = {around.path: around.number for around in reversed([*recording.stack(call)])}
    above, run = "", 0
    for name in path.split(".") if path else ():
        above = f"{above}.{name}" if above else name
        # A list of modules is not called: what is in it runs in a call of what holds the list.
        run = runs.get(above, run)
        yield name, run


def dataflow(graph: nx.DiGraph[Any], place: Place) -> dict[str, nx.DiGraph[FlowNode]]:
    """The graph of each module whose parts are shown, by its path.

    ``graph`` is that of the :func:`operators`; what the result does not need is left out. Where
    ``place`` lets one module stand for several, its graph has the edges of all of them. Nodes have
    the attribute ``order``, when they first ran; those of junctions have their ``label``; edges that
    lead back to what ran before are ``back``.
    """
    import networkx as nx

    needed: set[Any] = nx.ancestors(graph, OUTPUT) | {INPUT, OUTPUT}  # pyright: ignore[reportUnknownMemberType]
    dead = [node for node in graph if node not in needed]
    live = graph.copy()
    live.remove_nodes_from(dead)
    levels = _Levels(live, place)
    return {path: _simplified(level) for path, level in levels.found.items()}


class _Levels:
    """Routes each value through the borders of the modules between its writer and its reader."""

    def __init__(self, graph: nx.DiGraph[Any], place: Place):
        self.graph = graph
        self.place = place
        self.found: dict[str, nx.DiGraph[FlowNode]] = {}
        self.parts: dict[int, Within] = {}
        self.paths: dict[Within, str | None] = {}
        # For each operator and each module around it: what of that module's parts it depends on.
        self.behind: dict[int, list[frozenset[str]]] = {}
        self.last = max((n for n in graph if isinstance(n, int)), default=0) + 1
        for op in sorted(n for n in graph if isinstance(n, int)):
            self._operator(op)
        for source, target in graph.edges:
            self._route(source, target)

    def _operator(self, op: int) -> None:
        parts: Within = self.graph.nodes[op]["within"]
        self.parts[op] = parts
        behind: list[set[str]] = [set() for _ in range(len(parts) + 1)]
        for source in self.graph.predecessors(op):
            if source == INPUT:
                continue
            theirs = self.parts[source]
            for depth in range(_shared(parts, theirs) + 1):
                behind[depth] |= self.behind[source][depth]
                child = self.path(theirs[: depth + 1]) if len(theirs) > depth else None
                if child is not None:
                    behind[depth].add(child)
        self.behind[op] = [frozenset(found) for found in behind]

    def path(self, parts: Within) -> str | None:
        """The path of the module that stands for the one at ``parts``."""
        if parts not in self.paths:
            self.paths[parts] = self.place(".".join(name for name, _ in parts))
        return self.paths[parts]

    def _route(self, source: Any, target: Any) -> None:
        writer = None if source == INPUT else self.parts[source]
        reader = None if target == OUTPUT else self.parts[target]
        inner = -1 if writer is None or reader is None else _shared(writer, reader)
        if inner >= 0:
            self._edge(writer or (), inner, source, target)
        if writer is not None:
            for depth in range(inner + 1, len(writer) + 1):
                self._edge(writer, depth, source, OUTPUT)
        if reader is not None:
            for depth in range(inner + 1, len(reader) + 1):
                self._edge(reader, depth, INPUT, target)

    def _edge(self, parts: Within, depth: int, source: Any, target: Any) -> None:
        import networkx as nx

        path = self.path(parts[:depth])
        if path is None:
            return
        level = self.found.setdefault(path, nx.DiGraph())
        writer, reader = self._node(level, source, depth), self._node(level, target, depth)
        if writer is not None and reader is not None:
            # A sum of sums is one; a module that stands for several may read what one of them gave.
            if writer != reader or writer.kind == "module":
                level.add_edge(writer, reader)
            if reader.kind == "junction":
                level.nodes[reader]["arrivals"].append(target)

    def _node(self, level: nx.DiGraph[FlowNode], end: Any, depth: int) -> FlowNode | None:
        """What stands in the graph of a module at ``depth`` for an operator, or for its own ends."""
        if end in (INPUT, OUTPUT):
            node, order = FlowNode(end), -1 if end == INPUT else self.last
        else:
            parts, order = self.parts[end], end
            if len(parts) > depth:
                path = self.path(parts[: depth + 1])
                if path is None:
                    return None
                node = FlowNode("module", path)
            else:
                node = FlowNode("junction", "\n".join(sorted(self.behind[end][depth])))
        if node not in level:
            level.add_node(node, order=order, kinds={}, arrivals=[])
        known = level.nodes[node]
        known["order"] = min(known["order"], order)
        if node.kind == "junction":
            known["kinds"][end] = self.graph.nodes[end]["kind"]
        return node


def _shared(one: Within, other: Within) -> int:
    """How many calls around two operators are the same: another run of a module is another call."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _simplified(level: nx.DiGraph[FlowNode]) -> nx.DiGraph[FlowNode]:
    """``level`` with those junctions only that join several values for several readers."""
    while (node := next(_needless(level), None)) is not None:
        before, after = list(level.predecessors(node)), list(level.successors(node))
        if len(after) == 1 and len(before) > 1:
            level.nodes[after[0]]["kinds"] |= level.nodes[node]["kinds"]
            level.nodes[after[0]]["arrivals"] += level.nodes[node]["arrivals"]
        level.remove_node(node)
        level.add_edges_from((a, b) for a in before for b in after if a != b or a.kind == "module")
    _turn_back(level)
    for node, known in level.nodes(data=True):
        known["label"] = _label(known) if node.kind == "junction" else ""
    return level


def _needless(level: nx.DiGraph[FlowNode]) -> Iterator[FlowNode]:
    for node in level:
        if node.kind == "junction":
            after = list(level.successors(node))
            alone = level.in_degree(node) <= 1 or not after
            if alone or (len(after) == 1 and after[0].kind == "junction"):
                yield node


def _turn_back(level: nx.DiGraph[FlowNode]) -> None:
    """Mark the edges that close circles: those that lead to what ran before."""
    import networkx as nx

    circle = {
        node: number
        for number, found in enumerate(nx.strongly_connected_components(level))
        for node in found
    }
    order = level.nodes
    for source, target, known in level.edges(data=True):
        earlier = order[target]["order"] <= order[source]["order"]
        known["back"] = circle[source] == circle[target] and earlier


_SIGNS = {"add": "+", "mul": "×", "sub": "−", "div": "÷"}


def _label(known: dict[str, Any]) -> str:
    """`+`, `×`, `attention`: what a junction does to the values that it joins."""
    kinds = set(known["kinds"].values())
    if kinds & ATTENTIONS or ("softmax" in kinds and kinds & PRODUCTS):
        return "attention"
    arrivals = known["arrivals"]
    # An operator that two values come to joins them; if none does, all that is computed says it.
    joining = {op for op in arrivals if arrivals.count(op) > 1}
    names: list[str] = [known["kinds"][op] for op in sorted(joining or set(known["kinds"]))]
    signs = list(dict.fromkeys(_SIGNS.get(n, n) for n in names if n not in PASSIVE))
    plain = [s for s in signs if s in _SIGNS.values() or s not in POINTWISE]
    shown = plain or signs or ["…"]
    return " ".join(shown[:2]) + (" …" if len(shown) > 2 else "")
