"""Where a method emits nodes: behind one node of a traced graph."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx

from surgery.anatomy.site import Port
from surgery.graft.graphs.host import Host
from surgery.graft.graphs.states import as_given, in_sequence
from surgery.graft.sites import SiteMethods
from surgery.language.diagnostics import error
from surgery.planning.edit import Edit
from surgery.rules.expression import Expression


class Flattened(Protocol):
    """A graph being rewritten that knows which modules its nodes came from."""

    model: fx.GraphModule
    graph: fx.Graph

    def inside(self, path: str) -> list[fx.Node]:
        """The nodes that came from the module at ``path``."""
        ...

    def input(self, port: Port) -> fx.Node:
        """The node whose value enters at ``port``."""
        ...

    def output(self, port: Port) -> fx.Node:
        """The node whose value leaves at ``port``."""
        ...


class NodeHost(Host):
    """Emits behind one node of the graph; parameters are those of the module at ``owner``."""

    def __init__(self, writer: Flattened, site: SiteMethods, edit: Edit, base: fx.Node, owner: str):
        self.writer = writer
        self.graph = writer.graph
        self.site = site
        self.edit = edit
        self.node = base
        self.last = base
        self.prefix = f"{owner}." if owner else ""
        self._attributes: dict[str, fx.Node] = {}
        self.x: fx.Node | None = None
        self.entered: fx.Node | None = None

    def start(self) -> None:
        if self.edit.layer:
            self.x = self.node.all_input_nodes[0]
        elif any(e.reads("x") for e in self.site.program.changed):
            self.x = self.writer.input(self.edit.site.entry)

    def enter(self, value: fx.Node) -> fx.Node:
        """States as the program sees them: [batch, length, features], however they come."""
        states = self.edit.site.states
        if states.sequences is not None:
            like = self.writer.input(states.sequences)
            return self.call(in_sequence, value, like)
        return self.call(torch.transpose, value, 0, 1) if states.length_first else value

    def leave(self, value: fx.Node, like: fx.Node | None = None) -> fx.Node:
        """States as the graph has them, and has ``like``."""
        states = self.edit.site.states
        if states.sequences is not None:
            return self.call(as_given, value, like or self.node)
        return self.call(torch.transpose, value, 0, 1) if states.length_first else value

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

    def parameter(self, name: str) -> Tensor:
        """A parameter of the module by the name that it has there."""
        return self.writer.model.get_parameter(self.prefix + name)

    def function(self, graph: fx.Graph, prefix: str) -> fx.Node:
        """A graph of its own that functions may be given; its name begins with ``prefix``."""
        model = self.writer.model
        name = next(n for i in range(100_000) if (n := f"{prefix}{i}") not in model._modules)
        model.add_module(name, fx.GraphModule({}, graph))
        return self._put("get_attr", name, (), {})

    def leaf(self, expression: Expression) -> fx.Node:
        if expression.op == "param":
            return self.attribute(expression.name)
        if expression.name == "x":
            assert self.x is not None
            self.entered = self.enter(self.x)
            return self.entered
        if expression.name == "residual":
            port = self.site.residual
            assert port is not None
            at_end = port.side == "output"
            return self.enter(self.writer.output(port) if at_end else self.writer.input(port))
        assert self.edit.layer is not None
        return self.attribute(self.edit.layer.names[expression.name])

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
        norm = self.site.norm
        assert norm is not None
        if any(n.op == "call_module" and n.target == norm for n in self.graph.nodes):
            return self._put("call_module", norm, (value,), {})
        return self._once_more(norm, self.writer.input(Port(norm, "input")), value)

    def base(self, x: fx.Node) -> fx.Node:
        if x is self.entered or self.x is None:
            return self.enter(self.node)
        x = self.leave(x, self.x)
        if self.node.op == "call_module" or self.edit.layer:
            args = (x, *self.node.args[1:])
            return self.enter(self._put(self.node.op, self.node.target, args, self.node.kwargs))
        return self.enter(self._again(x))

    def _again(self, x: fx.Node) -> fx.Node:
        """The nodes of a flattened module once more, on another input."""
        assert self.x is not None
        return self._once_more(self.edit.site.name, self.x, x, self.node)

    def submodule(self, path: str, value: fx.Node) -> fx.Node:
        """A module of the graph, run once more."""
        return self._put("call_module", path, (value,), {})

    def again(self, node: fx.Node, own: fx.Node, value: fx.Node) -> fx.Node:
        """What ``node`` does, with ``value`` in place of ``own``."""
        with self.graph.inserting_after(self.last):
            self.last = self.graph.node_copy(node, lambda n: value if n is own else n)
        return self.last

    def _once_more(
        self, path: str, own: fx.Node, x: fx.Node, until: fx.Node | None = None
    ) -> fx.Node:
        """What the module at ``path`` makes of ``x`` in place of ``own``, up to a node of it."""
        copies: dict[fx.Node, fx.Node] = {own: x}
        for node in self.writer.inside(path):
            with self.graph.inserting_after(self.last):
                self.last = self.graph.node_copy(node, lambda n: copies.get(n, n))
            copies[node] = self.last
            if node is until:
                break
        return self.last
