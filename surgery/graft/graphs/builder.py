"""The graph of a module's forward while it is written: what the module has, is given and calls."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from surgery.anatomy.site import Port
from surgery.graft.attention.cores import write_core
from surgery.graft.attention.rerouting import CoreChange, call_attending
from surgery.graft.channel import take
from surgery.graft.design import Part
from surgery.graft.generate import SELF
from surgery.graft.graphs import calls, kept, states
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.held import call_held
from surgery.graft.graphs.host import Emitting
from surgery.graft.graphs.nodes import FunctionHost, GraphHost
from surgery.graft.passing import look
from surgery.graft.tokens.sequences import accepted
from surgery.layers.kind import Layer, named_rank
from surgery.planning.probe import arguments
from surgery.rules.expression import Expression, operand


class ForwardBuilder(GraphHost):
    """The graph being written, for a module of class ``cls``."""

    def __init__(self, cls: type[nn.Module], layer: Layer | None, plain: bool, prefix: str = ""):
        super().__init__(fx.Graph())
        self.cls = cls
        self.prefix = prefix
        self.functions: dict[str, fx.Graph] = {}
        self.cores: list[CoreChange] = []
        self.captured: list[tuple[fx.Node, ...]] = []
        self.layer = layer
        self.raw: fx.Node | None = None
        self._attributes: dict[str, fx.Node] = {}
        self._taken: dict[str, fx.Node] = {}
        self.inputs: dict[str, fx.Node] = {}
        self.parameters = arguments(cls)
        self.plain = plain
        self.rest: list[fx.Node] = []
        self.reads: fx.Node | None = None
        if plain:
            self.only, *self.rest = (self._given(p) for p in self.parameters)
        else:
            self.args = self.graph.placeholder("*args")
            self.kwargs = self.graph.placeholder("**kwargs")

    def _given(self, parameter: inspect.Parameter) -> fx.Node:
        default = () if parameter.default is parameter.empty else (parameter.default,)
        return self.graph.create_node("placeholder", parameter.name, default)

    @property
    def self_node(self) -> fx.Node:
        return self.attribute(SELF)

    def attribute(self, name: str) -> fx.Node:
        if name not in self._attributes:
            self._attributes[name] = self.graph.get_attr(name)
        return self._attributes[name]

    def take(self, slot: str) -> fx.Node:
        if slot not in self._taken:
            self._taken[slot] = self.call(take, self.attribute(slot))
        return self._taken[slot]

    def change_core(self, part: Part) -> None:
        """Have the core of ``part`` run changed while the module's own forward does.

        What passes between the modules of a region is known no earlier than when the core runs.
        """
        assert part.site.core is not None
        prefix = f"core{len(self.cores)}"
        written = write_core(part.program, part.site.core, dict(part.sizes), prefix)
        self.functions |= written.graphs
        if part.own:
            emitter = emitter_for(self, part, None)
            self.captured.append(tuple(emitter.emit(e) for e in written.captured))
            self.cores.append(written.change)
            return
        late = ForwardBuilder(self.cls, None, plain=False, prefix=f"{prefix}_")
        emitter = emitter_for(late, part, None)
        late.graph.output(tuple(emitter.emit(e) for e in written.captured))
        late.graph.eliminate_dead_code()
        for node in late.graph.nodes:
            if node.op == "placeholder":
                late.graph.erase_node(node)
        name = f"{prefix}_captured"
        self.functions |= {**late.functions, name: late.graph}
        self.captured.append(())
        self.cores.append(replace(written.change, late=name))

    def own_forward(self, args: Any, kwargs: Any) -> fx.Node:
        if self.reads is not None and not self.cores:
            return self.call(accepted, self.reads, self.self_node, args, kwargs)
        if not self.cores:
            return self.call(calls.call_base, self.self_node, args, kwargs)
        return self.call(call_attending, self.self_node, args, kwargs, tuple(self.captured))

    def argument(self, port: Port) -> tuple[int, str]:
        """The position and the name of the argument at ``port``; the first if it names none.

        One of several that the forward takes as one, as `*args`, is told by its place in these.
        """
        name = port.argument or self.parameters[0].name
        for position, parameter in enumerate(self.parameters):
            if parameter.name == name:
                rest = parameter.kind is parameter.VAR_POSITIONAL
                return position + (port.index if rest and isinstance(port.index, int) else 0), name
        return len(self.parameters), name

    def input(self, port: Port) -> fx.Node:
        if self.plain:
            return self.only
        position, name = self.argument(port)
        key = f"{name} {position}"
        if key not in self.inputs:
            self.inputs[key] = self.call(calls.take, self.args, self.kwargs, position, name)
        return self.inputs[key]

    def run(self, x: fx.Node, part: Part) -> fx.Node:
        """The module's own forward on ``x``; its hidden states."""
        if self.plain:
            return self.run_plain(x)
        args, kwargs = self.args, self.kwargs
        if x is not self.input(part.site.entry):
            position, name = self.argument(part.site.entry)
            args = self.call(calls.put_args, args, kwargs, position, name, x)
            kwargs = self.call(calls.put_kwargs, kwargs, name, x)
        self.raw = self.own_forward(args, kwargs)
        return self.output(part.site.exit)

    def run_plain(self, x: fx.Node) -> fx.Node:
        """The layer on ``x``, written out where its kind can be."""
        layer = self.layer
        if layer and layer.kind.written and layer.native:
            bias = self.attribute("bias") if layer.bias else None
            return self.call(layer.kind.written, x, self.attribute("weight"), bias)
        return self.call(calls.call_base, self.self_node, (x, *self.rest), {})

    def check_rank(self, part: Part) -> None:
        """Hold what a rule calls the dims of its input against what a call brings.

        Where features are in front, hidden states of other dims would have others there.
        """
        rank, slots = named_rank(part.program.named_dims, part.layer), dict(part.slots)
        known = part.site.states
        if rank is None and part.layer is None and known.features == "first" and known.rank:
            value = self.take(slots["x"]) if "x" in slots else self.input(part.site.entry)
            self.call(states.check_dims, value, known.rank, f"`{self.cls.__name__}`")
        if rank is None or part.program.signature.kind == "tokens" or "sequences" in slots:
            return
        value = self.take(slots["x"]) if "x" in slots else self.input(part.site.entry)
        self.call(states.check_rank, value, rank, f"`{self.cls.__name__}`")

    def base_unchanged(self) -> fx.Node:
        """The module's forward where no program of its own has run it."""
        if self.plain:
            return self.run_plain(self.only)
        self.raw = self.own_forward(self.args, self.kwargs)
        return self.raw

    def output(self, port: Port) -> fx.Node:
        if self.raw is None or port.index is None:
            return self.raw  # type: ignore[return-value]
        return self.call(calls.first, self.raw, port.index)

    def is_raw(self, value: fx.Node) -> bool:
        """Whether ``value`` is what the module's own forward gave, with nothing changed."""
        return value.target is calls.first and value.args[0] is self.raw

    def new_fold(self, expression: Expression, leaves: list[Expression], emitter: Emitting) -> str:
        key = f"{self.prefix}fold{len(self.functions)}"
        graph = fx.Graph()
        arguments = {leaf: graph.placeholder(f"value{i}") for i, leaf in enumerate(leaves)}
        inner = Emitter(FunctionHost(graph, arguments), emitter.layer, emitter.sizes)
        graph.output(inner.compute(expression))
        self.functions[key] = graph
        return key


class ModuleHost(GraphHost):
    """Writes into the graph of a module's forward."""

    def __init__(self, builder: ForwardBuilder, part: Part, current: fx.Node | None):
        super().__init__(builder.graph)
        self.builder = builder
        self.part = part
        self.current = current
        self.slots = dict(part.slots)

    def leaf(self, expression: Expression) -> fx.Node:
        name = expression.name
        if expression.op == "param":
            return self.builder.attribute(name)
        if name in self.slots:
            return self.builder.take(self.slots[name])
        if name == "x":
            return self.builder.input(self.part.site.entry)
        assert self.part.layer is not None
        return self.builder.attribute(self.part.layer.names[name])

    def module(self) -> fx.Node:
        return self.builder.self_node

    def more(self) -> tuple[fx.Node, ...]:
        return tuple(self.builder.rest)

    def training(self) -> fx.Node:
        return self.builder.attribute("training")

    def real(self, states: fx.Node) -> fx.Node | None:
        if "real" not in self.slots:
            return None
        return self.call(look, self.builder.attribute(self.slots["real"]), states)

    def held(self, name: str, value: fx.Node) -> fx.Node:
        return self.call(call_held, self.builder.attribute(self.slots[name]), value)

    def base(self, x: fx.Node) -> fx.Node:
        if not self.part.own:
            assert self.current is not None
            return self.current
        return self.builder.run(x, self.part)

    def leave(self, value: fx.Node) -> fx.Node:
        """``value``, a result of the program, with the axes that the module's own has."""
        return value

    def fold(self, expression: Expression, emitter: Emitting) -> fx.Node:
        leaves = sorted(expression.leaves, key=str)
        key = self.builder.new_fold(expression, leaves, emitter)
        values = tuple(self.leaf(leaf) for leaf in leaves)
        return self.call(kept.fold, self.builder.self_node, key, values)


class LengthFirstHost(ModuleHost):
    """For states with the length first: the program sees [batch, length, features]."""

    def turn(self, value: fx.Node) -> fx.Node:
        return self.call(torch.transpose, value, 0, 1)

    def leaf(self, expression: Expression) -> fx.Node:
        value = super().leaf(expression)
        return self.turn(value) if expression.varies else value

    def base(self, x: fx.Node) -> fx.Node:
        return self.turn(super().base(self.turn(x)))

    def leave(self, value: fx.Node) -> fx.Node:
        return self.turn(value)


class RowsHost(ModuleHost):
    """For states that come as rows: the program sees [batch, length, features]."""

    def __init__(self, builder: ForwardBuilder, part: Part, current: fx.Node | None):
        super().__init__(builder, part, current)
        self.given: dict[fx.Node, fx.Node] = {}
        self.first: fx.Node | None = None

    def in_sequence(self, value: fx.Node) -> fx.Node:
        like = self.builder.take(self.slots["sequences"])
        result = self.call(states.in_sequence, value, like)
        self.given[result] = value
        self.first = self.first or value
        return result

    def leaf(self, expression: Expression) -> fx.Node:
        value = super().leaf(expression)
        return self.in_sequence(value) if expression.varies else value

    def base(self, x: fx.Node) -> fx.Node:
        rows = self.given.get(x)
        if rows is None:
            rows = self.call(states.as_given, x, super().leaf(operand("x", ())))
        return self.in_sequence(super().base(rows))

    def leave(self, value: fx.Node) -> fx.Node:
        assert self.first is not None
        return self.call(states.as_given, value, self.first)


def emitter_for(builder: ForwardBuilder, part: Part, current: fx.Node | None) -> Emitter:
    known = part.site.states
    kind = LengthFirstHost if known.length_first else ModuleHost
    host = (RowsHost if "sequences" in dict(part.slots) else kind)(builder, part, current)
    return Emitter(host, part.layer, dict(part.sizes), known.features, known.rank, folding=True)
