"""The traced host: grafts as nodes in the graph of an `fx.GraphModule`.

Methods at a leaf are emitted behind its call; methods at a module that tracing flattened, or at a
region, between the nodes that came from it. The original graph is kept, and comes back whole.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as functional
from torch import fx, nn

from surgery.anatomy.lift import stacks
from surgery.anatomy.site import Port, covers
from surgery.graft.attention.traced import change_core, core_node
from surgery.graft.completing import HOOKS, ORIGINAL, Completing
from surgery.graft.container import take_grafts
from surgery.graft.contexts import alone
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.host import Host
from surgery.graft.graphs.passes import optimise
from surgery.graft.graphs.states import check_dims, check_rank
from surgery.graft.sites import SiteMethods, sites_of
from surgery.graft.state import Surgery
from surgery.graft.structure import Structure, restored
from surgery.language.diagnostics import error
from surgery.layers.kind import named_rank
from surgery.planning.edit import Edit
from surgery.rules.expression import Expression

_STACK = "nn_module_stack"
ORIGIN = "surgery_origin"
"""Under which a node's meta has the name of the node that it is in an exported program."""


def install(model: nn.Module, surgery: Surgery) -> None:
    """Rewrite the graph of ``model`` to what ``surgery`` records; parameters are in place."""
    assert isinstance(model, fx.GraphModule)
    original = model.graph
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(original, mapping)
    graph.output(result)
    flattened = stacks(model)
    stack_of = {mapping[node]: path for node, path in flattened.items() if node in mapping}
    writer = _Writer(model, graph, stack_of)
    sites = sites_of(surgery).values()
    for site in sorted(sites, key=lambda s: (not s.is_own, -s.first.site.name.count("."))):
        writer.write(site)
    optimise(graph, writer.added)
    model.__dict__[ORIGINAL] = original
    model.__dict__[HOOKS] = [*model.__dict__.get(HOOKS, []), Completing(model)]
    model.graph = graph
    graph.eliminate_dead_code()
    model.recompile()


def uninstall(model: nn.Module) -> None:
    """Give ``model`` its own graph back; parameters that were added stay where they are."""
    assert isinstance(model, fx.GraphModule)
    original = model.__dict__.pop(ORIGINAL, None)
    if original is None:
        return
    model.graph = original
    hooks = [h for h in model.__dict__.pop(HOOKS, []) if not isinstance(h, Completing)]
    if hooks:
        model.__dict__[HOOKS] = hooks


@contextmanager
def detached(model: nn.Module, structure: Structure | None = None) -> Generator[None]:
    """The base model inside: its own graph, without the added parameters.

    ``structure``, if given, is what the model is made of when this is entered.
    """
    with alone(model), restored(model, structure):
        uninstall(model)
        take_grafts(model)
        yield


class _Writer:
    """A graph being rewritten, and which flattened modules each node came from."""

    def __init__(
        self, model: fx.GraphModule, graph: fx.Graph, stack_of: dict[fx.Node, tuple[str, ...]]
    ):
        self.model = model
        self.graph = graph
        self.stack_of = stack_of
        self.added: set[fx.Node] = set()

    def write(self, site: SiteMethods) -> None:
        edit = site.first
        if edit.site.tokens is not None:
            raise error(
                "S417",
                "a traced graph has its masks and positions built in, so no tokens can join",
                help="apply the spec to the model itself, and torch.export that",
            )
        if edit.layer and edit.layer.read:
            raise error(
                "S417",
                f"in the traced graph nothing reads `{edit.site.whole}` but a module inside it",
                help="apply the spec to the model itself, and torch.export that",
            )
        calls = self.calls(edit.site.exit.path) if edit.layer else []
        if edit.layer and not calls:
            raise _unreachable(edit)
        core = site.core
        if core is not None:
            for node in [core_node(self.inside(core.path), one) for one in core.each]:
                self.emit_core(site, edit, node)
        if core is None or site.program.changes_result:
            for node in calls or [self.output(edit.site.exit)]:
                self.emit(site, edit, node)

    def emit_core(self, site: SiteMethods, edit: Edit, node: fx.Node) -> None:
        before = set(self.graph.nodes)
        users = list(node.users)
        host = _NodeHost(self, site, edit, node)
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

    def calls(self, path: str) -> list[fx.Node]:
        """The nodes that run the layer at ``path``: its calls, or functions of its weight."""
        weight = f"{path}.weight" if path else "weight"
        return [
            n
            for n in self.graph.nodes
            if (n.op == "call_module" and n.target == path)
            or (
                n.op == "call_function"
                and n.target is functional.linear
                and n not in self.added
                and isinstance(n.args[1], fx.Node)
                and n.args[1].op == "get_attr"
                and n.args[1].target == weight
            )
        ]

    def inside(self, path: str) -> list[fx.Node]:
        """The nodes that came from the flattened module at ``path``."""
        return [
            n
            for n in self.graph.nodes
            if any(covers(path, p) for p in self.stack_of.get(n, ()))
            or (n.op == "call_module" and covers(path, str(n.target)))
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
        host = _NodeHost(self, site, edit, base)
        states = edit.site.states
        emitter = Emitter(host, edit.layer, edit.sizes, states.features, states.rank)
        with self.graph.inserting_after(base):
            host.start()
            rank = named_rank(site.program.named_dims, edit.layer)
            if rank is not None and states.sequences is None:
                host.x = host.call(check_rank, host.x, rank, f"`{edit.site.name}`")
            elif edit.layer is None and states.features == "first" and states.rank:
                host.x = host.call(check_dims, host.x, states.rank, f"`{edit.site.name}`")
            result = emitter.emit(site.program.result)
        self.note(before, base)
        for user in users:
            user.replace_input_with(base, result)

    def note(self, before: set[fx.Node], beside: fx.Node) -> None:
        """New nodes came from the module that ``beside`` came from."""
        fresh = set(self.graph.nodes) - before
        self.added |= fresh
        for node in fresh:
            self.stack_of[node] = self.stack_of.get(beside, ())
            node.meta.pop(ORIGIN, None)
            if _STACK in beside.meta:
                node.meta[_STACK] = beside.meta[_STACK]


def _unreachable(edit: Edit) -> Exception:
    return error("S417", f"the traced graph never runs `{edit.site.name}`")


class _NodeHost(Host):
    """Emits behind one node of the graph."""

    def __init__(self, writer: _Writer, site: SiteMethods, edit: Edit, base: fx.Node):
        self.writer = writer
        self.graph = writer.graph
        self.site = site
        self.edit = edit
        self.node = base
        self.last = base
        path = edit.owner
        self.prefix = f"{path}." if path else ""
        self._attributes: dict[str, fx.Node] = {}
        self.x: fx.Node | None = None

    def start(self) -> None:
        if self.edit.layer:
            self.x = self.node.all_input_nodes[0]
        elif any(e.reads("x") for e in self.site.program.changed):
            self.x = self.writer.input(self.edit.site.entry)

    def _put(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.create_node(op, target, args, kwargs)
        return self.last

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._put(
            "call_method" if isinstance(target, str) else "call_function", target, args, kwargs
        )

    def attribute(self, name: str) -> fx.Node:
        full = self.prefix + name
        if full not in self._attributes:
            self._attributes[full] = self._put("get_attr", full, (), {})
        return self._attributes[full]

    def leaf(self, expression: Expression) -> fx.Node:
        if expression.op == "param":
            return self.attribute(expression.name)
        if expression.name == "x":
            assert self.x is not None
            return self.x
        if expression.name == "residual":
            port = self.site.residual
            assert port is not None
            return self.writer.output(port) if port.side == "output" else self.writer.input(port)
        return self.attribute({"W": "weight", "b": "bias"}[expression.name])

    def module(self) -> fx.Node:
        return self._put("get_attr", self.edit.site.exit.path, (), {})

    def more(self) -> tuple[Any, ...]:
        return (*self.node.args[1:], *self.node.kwargs.values())

    def training(self) -> fx.Node:
        return self._put("get_attr", "training", (), {})

    def real(self, states: fx.Node) -> fx.Node | None:
        port = self.site.mask
        if port is None:
            return None
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.target == port.argument:
                return node
        raise error(
            "S417",
            f"`{port.argument}`, which tells tokens from padding, is no input of the traced graph",
            help="trace the model with it, or pool over all places: gated(average = mean)",
        )

    def held(self, name: str, value: fx.Node) -> fx.Node:
        assert self.site.norm is not None
        return self._put("call_module", self.site.norm, (value,), {})

    def base(self, x: fx.Node) -> fx.Node:
        if x is self.x or self.x is None:
            return self.node
        if self.node.op == "call_module" or self.edit.layer:
            args = (x, *self.node.args[1:])
            return self._put(self.node.op, self.node.target, args, self.node.kwargs)
        return self._again(x)

    def _again(self, x: fx.Node) -> fx.Node:
        """The nodes of a flattened module once more, on another input."""
        copies: dict[fx.Node, fx.Node] = {}
        if self.x is not None:
            copies[self.x] = x
        for node in self.writer.inside(self.edit.site.name):
            if node is self.last:
                break
            with self.graph.inserting_after(self.last):
                self.last = self.graph.node_copy(node, lambda n: copies.get(n, n))
            copies[node] = self.last
            if node is self.node:
                break
        return self.last
