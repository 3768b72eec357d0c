"""The graph of one adapted module's forward.

Own methods of the module come first, then those of regions that end at it. What a region needs
from elsewhere arrives by taps, which the modules where it passes write to.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import fx, nn

from surgery.anatomy.site import Core, Port
from surgery.graft import kernels, tokens
from surgery.graft.cores import write_core
from surgery.graft.emit import Emitter, Host
from surgery.graft.expert_graphs import write_experts
from surgery.graft.generate import SELF
from surgery.graft.passes import optimise
from surgery.graft.prompts import token_change
from surgery.graft.rerouting import CoreChange, call_attending
from surgery.planning.layers import Layer
from surgery.rules.affine import NotAffine
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression, operand
from surgery.rules.program import Program


@dataclass(frozen=True)
class Part:
    """A program to run at a module: its result, or what it makes of an attention's ``core``.

    ``own`` programs read the module's input; the others are of regions that end here, or whose
    core runs here. ``taps`` name the module attributes from which `x` (of a region), `residual`
    and the mask of `real` tokens are read, and ``held`` the one that holds the norm module.
    """

    program: Program
    layer: Layer | None
    sizes: tuple[tuple[str, Scalar], ...]
    features: str
    rank: int | None
    own: bool
    entry: Port
    exit: Port
    taps: tuple[tuple[str, str], ...] = ()
    held: str | None = None
    core: Core | None = None
    gives_result: bool = True


@dataclass(frozen=True)
class Stack:
    """A module's part in what becomes of a stack's tokens; ``tap`` names what its parts share.

    The reader runs the ``program``. It hands what replaces tokens to the embedding by the taps in
    ``places``, with their ids; the embedding and the exit find there what concerns them.
    """

    role: Literal["reader", "embedding", "exit"]
    tap: str
    exit: Port
    program: Part | None = None
    places: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Design:
    """All that decides a generated class: modules with equal designs share one.

    ``parts`` are what the forward runs, ``read`` those whose weights other code reads.
    """

    parts: tuple[Part, ...] = ()
    writes: tuple[tuple[str, Port], ...] = ()
    stacks: tuple[Stack, ...] = ()
    read: tuple[Part, ...] = ()


@dataclass
class Built:
    graph: fx.Graph
    functions: dict[str, fx.Graph] = field(default_factory=dict[str, fx.Graph])
    cores: list[CoreChange] = field(default_factory=list[CoreChange])


class _GraphHost(Host):
    """Writes into the graph of a module's forward."""

    def __init__(self, frame: _Frame, part: Part, current: fx.Node | None):
        self.frame = frame
        self.part = part
        self.current = current
        self.taps = dict(part.taps)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.frame.call(target, *args, **kwargs)

    def leaf(self, expression: Expression) -> fx.Node:
        name = expression.name
        if expression.op == "param":
            return self.frame.attribute(name)
        if name in self.taps:
            return self.frame.tap(self.taps[name])
        if name == "x":
            return self.frame.input(self.part.entry)
        assert self.part.layer is not None
        return self.frame.attribute(self.part.layer.names[name])

    def module(self) -> fx.Node:
        return self.frame.self_node

    def training(self) -> fx.Node:
        return self.frame.attribute("training")

    def real(self) -> fx.Node | None:
        return self.frame.peek(self.taps["real"]) if "real" in self.taps else None

    def held(self, name: str, value: fx.Node) -> fx.Node:
        assert self.part.held
        return self.call(kernels.call_held, self.frame.attribute(self.part.held), value)

    def base(self, x: fx.Node) -> fx.Node:
        if not self.part.own:
            assert self.current is not None
            return self.current
        return self.frame.base(x, self.part)

    def fold(self, expression: Expression, emitter: Emitter) -> fx.Node:
        leaves = sorted(expression.leaves, key=str)
        key = self.frame.new_fold(expression, leaves, emitter)
        values = tuple(self.leaf(leaf) for leaf in leaves)
        return self.call(kernels.fold, self.frame.self_node, key, values)


class _RowsHost(_GraphHost):
    """For states that come as rows: the program sees [batch, length, features]."""

    def __init__(self, frame: _Frame, part: Part, current: fx.Node | None):
        super().__init__(frame, part, current)
        self.given: dict[fx.Node, fx.Node] = {}
        self.first: fx.Node | None = None

    def in_sequence(self, value: fx.Node) -> fx.Node:
        like = self.frame.tap(self.taps["sequences"])
        result = self.call(kernels.in_sequence, value, like)
        self.given[result] = value
        self.first = self.first or value
        return result

    def leaf(self, expression: Expression) -> fx.Node:
        value = super().leaf(expression)
        return self.in_sequence(value) if expression.varies else value

    def base(self, x: fx.Node) -> fx.Node:
        rows = self.given.get(x)
        if rows is None:
            rows = self.call(kernels.as_given, x, super().leaf(operand("x", ())))
        return self.in_sequence(super().base(rows))


class _FoldHost(Host):
    """Writes the computation of one folded value, of which the leaves are arguments."""

    def __init__(self, graph: fx.Graph, arguments: Mapping[Expression, fx.Node]):
        self.graph = graph
        self.arguments = arguments

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return _call(self.graph, target, args, kwargs)

    def leaf(self, expression: Expression) -> fx.Node:
        return self.arguments[expression]


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    if isinstance(target, str):
        return graph.call_method(target, args, kwargs)
    return graph.call_function(target, args, kwargs)


class _Frame:
    """The graph being written, for a module of class ``cls``."""

    def __init__(self, cls: type[nn.Module], layer: Layer | None, plain: bool, prefix: str = ""):
        self.graph = fx.Graph()
        self.cls = cls
        self.prefix = prefix
        self.functions: dict[str, fx.Graph] = {}
        self.cores: list[CoreChange] = []
        self.captured: list[tuple[fx.Node, ...]] = []
        self.layer = layer
        self.raw: fx.Node | None = None
        self._attributes: dict[str, fx.Node] = {}
        self._taps: dict[str, fx.Node] = {}
        self._inputs: dict[str, fx.Node] = {}
        self.parameters = [p for p in inspect.signature(cls.forward).parameters if p != "self"]
        self.plain = plain
        if plain:
            self.only = self.graph.placeholder(self.parameters[0])
        else:
            self.args = self.graph.placeholder("*args")
            self.kwargs = self.graph.placeholder("**kwargs")

    @property
    def self_node(self) -> fx.Node:
        return self.attribute(SELF)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return _call(self.graph, target, args, kwargs)

    def attribute(self, name: str) -> fx.Node:
        if name not in self._attributes:
            self._attributes[name] = self.graph.get_attr(name)
        return self._attributes[name]

    def tap(self, name: str) -> fx.Node:
        if name not in self._taps:
            self._taps[name] = self.call(kernels.read_tap, self.attribute(name))
        return self._taps[name]

    def peek(self, name: str) -> fx.Node:
        return self.call(kernels.peek_tap, self.attribute(name))

    def change_core(self, part: Part) -> None:
        """Have the core of ``part`` run changed while the module's own forward does.

        What passes between the modules of a region is known no earlier than when the core runs.
        """
        assert part.core is not None
        prefix = f"core{len(self.cores)}"
        written = write_core(part.program, part.core, dict(part.sizes), prefix)
        self.functions |= written.graphs
        if part.own:
            emitter = _emitter(self, part, None)
            self.captured.append(tuple(emitter.emit(e) for e in written.captured))
            self.cores.append(written.change)
            return
        late = _Frame(self.cls, None, plain=False, prefix=f"{prefix}_")
        emitter = _emitter(late, part, None)
        late.graph.output(tuple(emitter.emit(e) for e in written.captured))
        late.graph.eliminate_dead_code()
        for node in late.graph.nodes:
            if node.op == "placeholder":
                late.graph.erase_node(node)
        name = f"{prefix}_captured"
        self.functions |= {**late.functions, name: late.graph}
        self.captured.append(())
        self.cores.append(replace(written.change, late=name))

    def begin(self, stack: Stack) -> None:
        """Change the arguments of a reader as its program says."""
        part, tap = stack.program, self.attribute(stack.tap)
        assert part is not None
        emitter = _emitter(self, part, None)
        change = token_change(part.program.result, emitter.sizes)
        calls: list[tuple[Any, ...]] = [(tokens.noticed, tap)] if change.places else []
        if change.shift:
            calls.append((tokens.shifted, tap, change.shift))
        if change.prompts:
            prompts = tuple(emitter.emit(e) for e in change.prompts)
            prompt = prompts[0] if len(prompts) == 1 else self.call(torch.cat, prompts, 0)
            calls.append((tokens.extended, tap, prompt))
        for (name, _), (_, vectors) in zip(stack.places, change.places, strict=True):
            self.call(kernels.write_tap, self.attribute(name), emitter.emit(vectors))
        for function, *given in calls:
            pair = self.call(function, *given, self.args, self.kwargs)
            self.args, self.kwargs = (self.call(operator.getitem, pair, i) for i in (0, 1))
        self._inputs.clear()

    def end(self, stack: Stack, result: fx.Node) -> fx.Node:
        """What the module gives, as its part in a stack has it."""
        tap = self.attribute(stack.tap)
        if stack.role == "reader":
            return self.call(tokens.restored, tap, result)
        if stack.role == "embedding":
            ids = self.only if self.plain else self.input(Port("", "input"))
            for name, token in stack.places:
                vectors = self.call(kernels.peek_tap, self.attribute(name))
                result = self.call(tokens.placed, tap, ids, token, vectors, result)
            return self.call(tokens.filled, tap, result)
        if self.plain or stack.exit.index is None:
            return self.call(tokens.trimmed, tap, result)
        hidden = self.call(kernels.first, result, stack.exit.index)
        hidden = self.call(tokens.trimmed, tap, hidden)
        return self.call(kernels.with_first, result, stack.exit.index, hidden)

    def own_forward(self, args: Any, kwargs: Any) -> fx.Node:
        if not self.cores:
            return self.call(kernels.call_base, self.self_node, args, kwargs)
        return self.call(call_attending, self.self_node, args, kwargs, tuple(self.captured))

    def input(self, port: Port) -> fx.Node:
        if self.plain:
            return self.only
        name = port.argument or self.parameters[0]
        if name not in self._inputs:
            position = self.parameters.index(name)
            self._inputs[name] = self.call(kernels.take, self.args, self.kwargs, position, name)
        return self._inputs[name]

    def base(self, x: fx.Node, part: Part) -> fx.Node:
        """The module's own forward on ``x``; its hidden states."""
        layer = part.layer
        if self.plain:
            if layer and layer.kind in ("linear", "transposed") and layer.native:
                bias = self.attribute("bias") if layer.bias else None
                weight = self.attribute("weight")
                if layer.kind == "transposed":
                    return self.call(kernels.transposed_linear, x, weight, bias)
                return self.call(functional.linear, x, weight, bias)
            return self.call(kernels.call_base, self.self_node, (x,), {})
        args, kwargs = self.args, self.kwargs
        name = part.entry.argument or self.parameters[0]
        if x is not self.input(part.entry):
            position = self.parameters.index(name)
            args = self.call(kernels.put_args, args, kwargs, position, name, x)
            kwargs = self.call(kernels.put_kwargs, kwargs, name, x)
        self.raw = self.own_forward(args, kwargs)
        return self.output(part.exit)

    def base_unchanged(self) -> fx.Node:
        """The module's forward where no program of its own has run it."""
        if self.plain:
            return self.base(self.only, _unchanged(self.layer))
        self.raw = self.own_forward(self.args, self.kwargs)
        return self.raw

    def output(self, port: Port) -> fx.Node:
        if self.raw is None or port.index is None:
            return self.raw  # type: ignore[return-value]
        return self.call(kernels.first, self.raw, port.index)

    def new_fold(self, expression: Expression, leaves: list[Expression], emitter: Emitter) -> str:
        key = f"{self.prefix}fold{len(self.functions)}"
        graph = fx.Graph()
        arguments = {leaf: graph.placeholder(f"value{i}") for i, leaf in enumerate(leaves)}
        inner = Emitter(_FoldHost(graph, arguments), emitter.layer, emitter.sizes)
        graph.output(inner.compute(expression))
        self.functions[key] = graph
        return key


def _unchanged(layer: Layer | None) -> Part:
    port = Port("", "input")
    return Part(None, layer, (), "last", None, True, port, port)  # type: ignore[arg-type]


def write_forward(cls: type[nn.Module], layer: Layer | None, design: Design) -> Built:
    """The forward of a module of class ``cls`` with ``design`` grafted on it."""
    plain = (layer is not None and layer.native and layer.kind != "transposed") or _is_simple(layer)
    frame = _Frame(cls, layer, plain)
    for tap, port in design.writes:
        if port.side == "input":
            frame.call(kernels.write_tap, frame.attribute(tap), frame.input(port))
    for stack in design.stacks:
        if stack.role == "reader":
            frame.begin(stack)
    value: fx.Node | None = None
    exit_port: Port | None = None
    for part in design.parts:
        if part.core is not None:
            frame.change_core(part)
    for part in design.parts:
        if not part.gives_result:
            continue
        if value is None and not part.own:
            value = frame.base_unchanged()
            if not frame.plain:
                value = frame.output(part.exit)
        emitter = _emitter(frame, part, value)
        value = emitter.emit(part.program.result)
        if isinstance(emitter.host, _RowsHost):
            value = frame.call(kernels.as_given, value, emitter.host.first)
        exit_port = part.exit
    result = value if value is not None else frame.base_unchanged()
    if not frame.plain and value is not None and exit_port and exit_port.index is not None:
        result = frame.call(kernels.with_first, frame.raw, exit_port.index, value)
    for stack in design.stacks:
        result = frame.end(stack, result)
    for tap, port in design.writes:
        if port.side == "output":
            seen = (
                result
                if frame.plain or port.index is None
                else frame.call(kernels.first, result, port.index)
            )
            frame.call(kernels.write_tap, frame.attribute(tap), seen)
    frame.graph.output(result)
    optimise(frame.graph)
    return Built(frame.graph, frame.functions, frame.cores)


def _emitter(frame: _Frame, part: Part, current: fx.Node | None) -> Emitter:
    kind = _RowsHost if "sequences" in dict(part.taps) else _GraphHost
    host = kind(frame, part, current)
    return Emitter(host, part.layer, dict(part.sizes), part.features, part.rank, folding=True)


def write_effective(part: Part) -> tuple[dict[str, fx.Graph], dict[str, fx.Graph]]:
    """Graphs of the effective weight and bias of a layer that is read and never called, by name.

    The second are functions that they call by name.

    Raises:
        ValueError: if the part's program has no merge.

    """
    merged = part.program.merge
    if isinstance(merged, NotAffine) or part.layer is None:
        raise ValueError("only a method that merges has an effective weight")
    if part.layer.experts:
        graph, functions = write_experts(merged.weight, part.layer, dict(part.sizes))
        return {part.layer.weight: graph}, functions
    graphs: dict[str, fx.Graph] = {}
    for name, expression in (("W", merged.weight), ("b", merged.bias)):
        graph = fx.Graph()
        host = _EffectiveHost(graph, part.layer)
        value = Emitter(host, part.layer, dict(part.sizes)).emit(expression)
        graph.output(value if isinstance(value, fx.Node) else None)
        graphs[part.layer.names[name]] = graph
    return graphs, {}


class _EffectiveHost(Host):
    """Reads a layer's own tensors beneath the properties that replace them."""

    def __init__(self, graph: fx.Graph, layer: Layer):
        self.graph = graph
        self.layer = layer

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return _call(self.graph, target, args, kwargs)

    def leaf(self, expression: Expression) -> fx.Node:
        if expression.op == "param":
            return self.graph.get_attr(expression.name)
        name = self.layer.names[expression.name]
        return self.call(kernels.own_parameter, self.graph.get_attr(SELF), name)


def _is_simple(layer: Layer | None) -> bool:
    return layer is not None and layer.kind == "transposed"
