"""Methods written as nodes of a graph, behind the calls and flattened modules that they change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import fx

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.lift import ModuleRef
from surgery.anatomy.site import Port, Tokens, covers
from surgery.graft.attention.nodes import change_core, core_node
from surgery.graft.attention.written import WrittenOut, change_written
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.states import check_dims, check_rank
from surgery.graft.node_host import NodeHost
from surgery.graft.sites import SiteMethods
from surgery.graft.tokens.nodes import write_tokens
from surgery.graft.weight_readers import WeightReaders, multiplies, unreachable
from surgery.graft.weights.effective_nodes import effective
from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.layers.kind import named_rank
from surgery.planning.edit import Edit
from surgery.planning.reading import changed, is_effective
from surgery.rules.expression import Expression
from surgery.rules.prompts import token_change

_STACK = "nn_module_stack"
ORIGIN = "surgery_origin"
"""Under which a node's meta has the name of the node that it is in an exported program."""


class GraphWriter:
    """A graph being rewritten, and which flattened modules each node came from."""

    def __init__(
        self, model: fx.GraphModule, graph: fx.Graph, stack_of: dict[fx.Node, tuple[ModuleRef, ...]]
    ):
        self.model = model
        self.graph = graph
        self.stack_of = stack_of
        self.nodes_of = _nodes_of(graph, stack_of)
        self.added: set[fx.Node] = set()
        self.readers = WeightReaders(model, graph, stack_of, self.added)
        self.run: tuple[ModuleRef, ...] = ()
        """The call of flattened modules that is being rewritten: those around what is written."""

    def write(self, site: SiteMethods) -> None:
        """Write what ``site`` has, in each call of its module."""
        for run in self.runs(site):
            self.run = run
            self.write_run(site)
            if site.first.layer:
                break
        self.run = ()

    def runs(self, site: SiteMethods) -> list[tuple[ModuleRef, ...]]:
        """The calls of the flattened modules that hold all of ``site``; one where none was flattened."""
        where = site.first.site
        paths = [where.entry.path, where.exit.path, *([site.core.path] if site.core else [])]
        found: dict[tuple[ModuleRef, ...], None] = {}
        for node in self.nodes_of.get(paths[-1], ()):
            around = self.stack_of.get(node, ())
            holding = [f for f in around if all(covers(f.path, path) for path in paths)]
            found[tuple(holding)] = None
        return list(found) or [()]

    def write_run(self, site: SiteMethods) -> None:
        edit = site.first
        if isinstance(edit.site.operator, Tokens):
            self.emit_tokens(site, edit, edit.site.operator)
            return
        calls: list[fx.Node] = []
        if edit.layer:
            calls, others = self.readers.of_layer(edit, edit.layer)
            if others or not calls:
                self.put_in_place(site, edit, edit.layer, others)
            if not calls:
                return
        core = site.core
        if core is not None:
            inside = self.inside(core.path)
            for one, found in [(c, core_node(self.model, inside, c)) for c in core.each]:
                if isinstance(found, WrittenOut):
                    self.emit_written(site, edit, one, found)
                else:
                    self.emit_core(site, edit, found)
        if core is None or site.program.changes_result:
            for node in calls or [self.output(edit.site.exit)]:
                self.emit(site, edit, node)

    def emit_tokens(self, site: SiteMethods, edit: Edit, tokens: Tokens) -> None:
        before = set(self.graph.nodes)
        inner = self.output(Port(tokens.embedding, "output"))
        host = NodeHost(self, site, edit, inner, edit.owner)

        def emitting(behind: fx.Node) -> Emitter:
            one = copy.copy(host)
            one.last = behind
            return Emitter(one, None, edit.sizes)

        change = token_change(site.program.result, edit.sizes)
        write_tokens(self.model, tokens, change, emitting, self.output)
        self.note(before, inner)

    def emit_core(self, site: SiteMethods, edit: Edit, node: fx.Node) -> None:
        before = set(self.graph.nodes)
        users = list(node.users)
        host = NodeHost(self, site, edit, node, site.core_owner)
        host.last = node.prev
        host.start()

        def emitter(known: dict[Expression, Any]) -> Emitter:
            if node in known.values():
                host.last = node
            return Emitter(host, None, edit.sizes, known=known)

        result = change_core(node, site.program, emitter)
        self.note(before, node)
        for user in users:
            if result is not node:
                user.replace_input_with(node, result)

    def emit_written(
        self, site: SiteMethods, edit: Edit, core: AttentionCore, found: WrittenOut
    ) -> None:
        before = set(self.graph.nodes)
        host = NodeHost(self, site, edit, found.product, site.core_owner)

        def emitting(known: dict[Expression, Any], behind: fx.Node) -> Emitter:
            one = copy.copy(host)
            one.last = behind
            one._attributes = {}
            return Emitter(one, None, edit.sizes, known=known)

        host.last = found.product.prev
        host.start()
        change_written(self.model, core, found, site.program, emitting)
        self.note(before, found.softmax)

    def put_in_place(
        self, site: SiteMethods, edit: Edit, layer: Layer, others: list[fx.Node]
    ) -> None:
        """Have what reads the weight of ``layer`` otherwise than its calls read the changed one.

        Raises:
            SurgeryError: S417 if there is none, or nothing reads it.

        """
        path = edit.site.exit.path
        names = (layer.weight, layer.offset)
        reads = {name: self.readers.of(f"{path}.{name}".lstrip(".")) for name in names}
        needed = changed(site.program, layer)
        if (
            not others
            or not is_effective(site.program, layer)
            or not all(reads[layer.names[name]] for name in needed)
        ):
            raise unreachable(edit, others)
        before = set(self.graph.nodes)
        first = reads[layer.weight][0][0]
        host = NodeHost(self, site, edit, first, edit.owner)
        made = effective(host, layer, site.program)
        for name, value in made.items():
            for attribute, user in reads[name]:
                if not (user.op == "call_module" or multiplies(user)):
                    user.replace_input_with(attribute, value)
        self.note(before, first)

    def inside(self, path: str) -> list[fx.Node]:
        """The nodes that came from the flattened module at ``path``, in the call that is rewritten."""
        run = tuple(frame for frame in self.run if covers(frame.path, path))
        return [
            n
            for n in self.graph.nodes
            if self.stack_of.get(n, ())[: len(run)] == run
            and (
                not path
                or any(covers(path, frame.path) for frame in self.stack_of.get(n, ()))
                or (n.op == "call_module" and covers(path, str(n.target)))
            )
        ]

    def input(self, port: Port) -> fx.Node:
        """The node whose value enters at ``port``."""
        nodes = self.inside(port.path)
        own = set(nodes)
        for node in nodes:
            for source in node.all_input_nodes:
                if (
                    source not in own
                    and source.op != "get_attr"
                    and source not in self.added_params
                ):
                    return source
        raise error("S417", f"nothing enters `{port.path}` in the traced graph")

    @property
    def added_params(self) -> set[fx.Node]:
        return {n for n in self.added if n.op == "get_attr"}

    def output(self, port: Port) -> fx.Node:
        """The node whose value leaves at ``port``."""
        nodes = self.inside(port.path)
        own = set(nodes)
        leaving = [n for n in nodes if any(user not in own for user in n.users)]
        if not leaving:
            raise error("S417", f"nothing leaves `{port.path}` in the traced graph")
        return leaving[-1]

    def emit(self, site: SiteMethods, edit: Edit, base: fx.Node) -> None:
        before = set(self.graph.nodes)
        users = list(base.users)
        host = NodeHost(self, site, edit, base, edit.site.owner)
        states = edit.site.states
        emitter = Emitter(host, edit.layer, edit.sizes, states.features, states.rank)
        with self.graph.inserting_after(base):
            host.start()
            rank = named_rank(site.program.named_dims, edit.layer)
            if rank is not None and states.sequences is None:
                host.x = host.call(check_rank, host.x, rank, f"`{edit.site.name}`")
            elif edit.layer is None and states.features == "first" and states.rank:
                host.x = host.call(check_dims, host.x, states.rank, f"`{edit.site.name}`")
            result = host.leave(emitter.emit(site.program.result))
        self.note(before, base)
        for user in users:
            user.replace_input_with(base, result)

    def note(self, before: set[fx.Node], beside: fx.Node) -> None:
        """New nodes came from the module that ``beside`` came from, or runs."""
        fresh = set(self.graph.nodes) - before
        self.added |= fresh
        around = self.stack_of.get(beside, ())
        if beside.op == "call_module":
            around = (*around, ModuleRef(str(beside.target), str(beside.target)))
        for node in fresh:
            self.stack_of[node] = around
            node.meta.pop(ORIGIN, None)
            if _STACK in beside.meta:
                node.meta[_STACK] = beside.meta[_STACK]


def _nodes_of(
    graph: fx.Graph, stack_of: dict[fx.Node, tuple[ModuleRef, ...]]
) -> dict[str, list[fx.Node]]:
    """The nodes that run each module, or what is in it: flattened ones, and those that are called."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        paths = [frame.path for frame in stack_of.get(node, ())]
        if node.op == "call_module":
            paths.append(str(node.target))
        for around in dict.fromkeys(above for path in paths for above in _above(path)):
            found.setdefault(around, []).append(node)
    return found


def _above(path: str) -> Iterator[str]:
    """``path`` and those of the modules around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
