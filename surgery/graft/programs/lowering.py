"""A rewritten graph as an exported program again.

Nodes of the base are copied, with what was known of them; what was added is traced into operators of
ATen, on the fake tensors that the program holds, so that its dims stay what they were: sizes, or
symbols in their ranges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from surgery.graft.graph_writer import ORIGIN
from surgery.graft.programs.additions import additions
from surgery.graft.programs.envelope import FIRST, calls_in, renamed, tensors_of, unlisted
from surgery.graft.programs.inner import values_of
from surgery.graft.programs.modules import reads_of
from surgery.graft.programs.opening import opened
from surgery.graft.programs.sameness import does_the_same, same_sizes
from surgery.graft.programs.source import Source
from surgery.graft.programs.tracing import Tracer, value_of
from surgery.graft.programs.undoing import CUSTOM, KEY, mark, noted, reading

_STACK = "nn_module_stack"
_FRESH = "graft_"
"""How names of added nodes begin, so that none takes that of a node of the base."""


def lowered(
    model: fx.GraphModule,
    source: Source,
    record: dict[str, Any] | None,
    first: Mapping[str, Tensor],
) -> ExportedProgram:
    """The program that ``model`` is, rewritten from the base in ``source``.

    ``record`` is what is applied to it, and ``first`` the first values of parameters that it trains.

    Raises:
        SurgeryError: S441 if it would hold for fewer sizes than the base, S442 if an added operation
            cannot stand in an exported program.

    """
    writer = _Lowering(model, source)
    graph = writer.written()
    tensors = tensors_of(model, source.program)
    constants: dict[str, Any] = {
        n: t for n, t in source.tensors.items() if n in source.program.constants
    }
    constants |= writer.constants
    state = {n: t for n, t in source.tensors.items() if n not in constants}
    order = [str(s.target) for s in writer.specs if s.target is not None]
    names = dict.fromkeys(n for n in (*order, *state) if n not in constants)
    state = {n: tensors[n] if n in tensors else state[n] for n in names}
    state |= unlisted(source.program, state)
    meta: dict[str, Any] = dict(source.program.graph_module.meta)
    custom: dict[str, Any] = meta.get(CUSTOM) or {}
    meta[CUSTOM] = {k: v for k, v in custom.items() if k != KEY}
    if record is not None:
        places = {name: f"{FIRST}{i}" for i, name in enumerate(first)}
        state |= {places[name]: value.detach().clone() for name, value in first.items()}
        note = {**record, **writer.note(), "first": places}
        meta[CUSTOM] |= {KEY: json.dumps(note)}
    program = source.program
    untyped: Any = program
    made = ExportedProgram(
        root=writer.root,
        graph=graph,
        graph_signature=writer.signature(),
        state_dict=state,
        range_constraints=dict(untyped.range_constraints),
        module_call_graph=calls_in(graph, source.graph, source.program),
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=list(program.verifiers),
    )
    made.graph_module.meta.update(meta)
    return made


class _Lowering:
    """The graph of a program being written, from that of a raised module."""

    def __init__(self, model: fx.GraphModule, source: Source):
        self.model = model
        self.source = source
        self.base = {node.name: node for node in source.graph.nodes}
        self.held = source.held
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.env: dict[fx.Node, Any] = {}
        """What each node of the model is in the program: a node, or a plain value."""
        self.copied: dict[str, fx.Node] = {}
        self.waiting: list[fx.Node] = []
        self.constants: dict[str, Tensor] = {}
        self.specs: list[InputSpec] = []
        self.fresh: list[str] = []
        self.users = {s.arg.name for s in source.inputs if s.kind is InputKind.USER_INPUT}
        self.places: dict[str, fx.Node] = {}
        values = [n.meta.get("val") for n in source.graph.nodes]
        self.mode = detect_fake_mode(pytree.tree_leaves(values))
        self.traced = Tracer(self.mode)

    def written(self) -> fx.Graph:
        """The whole graph."""
        self.inputs()
        for node in opened(self.model, self.base, self.is_of_base).nodes:
            if node.op == "placeholder":
                self.env[node] = self.copied[node.meta[ORIGIN]]
            elif node.op == "get_attr":
                self.env[node] = self.attribute(node)
            elif node.op == "output":
                self.flush()
                self.output(node)
            elif self.is_of_base(node):
                self.flush()
                self.env[node] = self.copy(node)
            else:
                self.waiting.append(node)
        self.graph.lint()
        return self.graph

    # Inputs

    def inputs(self) -> None:
        """Placeholders: those of the base, and of added parameters where they stand in the module."""
        behind = additions(self.model, self.source)
        for name, parameter in behind.pop(None, []):
            self.add(name, parameter)
        for node in self.base.values():
            if node.op != "placeholder":
                continue
            self.copied[node.name] = made = self.graph.node_copy(node)
            # Also a name that fx would not give: `input`.
            made.name = node.name
            if node.name in self.held:
                self.places[self.held[node.name]] = made
            for spec in (s for s in self.source.inputs if s.arg.name == node.name):
                self.specs.append(spec)
            for name, parameter in behind.pop(node.name, []):
                self.add(name, parameter)

    def add(self, name: str, parameter: nn.Parameter) -> None:
        node = self.graph.placeholder(f"p_{_FRESH}{name.replace('.', '_')}")
        node.meta["val"] = self.fake(parameter)
        self.places[name] = node
        spec = InputSpec(InputKind.PARAMETER, TensorArgument(node.name), name)
        self.specs.append(spec)
        self.fresh.append(node.name)

    def fake(self, tensor: Tensor) -> Any:
        if self.mode is None:
            return tensor
        return self.mode.from_tensor(tensor, static_shapes=True)

    def attribute(self, node: fx.Node) -> Any:
        """A parameter or buffer is an input; all else that a module has is known as it is."""
        name = str(node.target)
        value: Any = self.model
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor):
            if name not in self.places:
                name = next(n for n, p in self.model.named_parameters() if p is value)
            return self.places[name]
        origin = node.meta.get(ORIGIN)
        if origin is None:
            return value
        setattr(self.root, name, value)
        made = self.graph.get_attr(name)
        made.meta = dict(self.base[origin].meta)
        made.name = origin
        return made

    # Nodes of the base

    def is_of_base(self, node: fx.Node) -> bool:
        """Whether ``node`` does what it did in the base, if perhaps with other values."""
        return does_the_same(self.model, node, self.base.get(node.meta.get(ORIGIN, "")))

    def copy(self, node: fx.Node) -> fx.Node:
        origin = self.base[node.meta[ORIGIN]]
        mine = self.operands(node, origin)
        made = self.graph.node_copy(origin, lambda n: mine[n])
        made.name = origin.name
        made.meta = dict(origin.meta)
        self.copied[origin.name] = made
        if [n.name for n in made.all_input_nodes] != [n.name for n in origin.all_input_nodes]:
            mark(made, **reading(origin))
        if not same_sizes(made, origin):
            made.meta["val"] = value_of(made, self.root, self.mode)
        return made

    def operands(self, node: fx.Node, origin: fx.Node) -> dict[fx.Node, fx.Node]:
        """What ``node`` reads in place of what ``origin`` did."""
        if node.op == "call_module":
            reads = reads_of(origin)
            assert reads is not None
            found = {
                n: self.places[self.held[n.name]]
                for n in origin.all_input_nodes
                if n.name in self.held
            }
            return {**found, origin.args[reads.input]: self.env[node.args[0]]}  # type: ignore[dict-item,index]
        pairs = zip(values_of(origin), values_of(node), strict=True)
        return {a: self.env[b] for a, b in pairs}

    # What was added

    def flush(self) -> None:
        """Trace the nodes that wait, and put what they are in operators into the graph."""
        nodes, self.waiting = self.waiting, []
        if not nodes:
            return
        own = set(nodes)
        given = list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in own))
        free = [i for i in given if isinstance(self.env[i], fx.Node)]
        results = [n for n in nodes if any(user not in own for user in n.users)]
        values = [self.env[i].meta["val"] for i in free]
        known = {i: self.env[i] for i in given}
        graph = self.traced(nodes, known, free, results, values)
        inner: dict[fx.Node, Any] = {}
        stacks: list[Any] = [n.meta[_STACK] for n in nodes if n.meta.get(_STACK)]
        stack: Any = stacks[0] if stacks else {}
        places = iter(free)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                inner[node] = self.env[next(places)]
            elif node.op == "get_attr":
                inner[node] = self.constant(getattr(graph, str(node.target)))
            elif node.op == "output":
                made = fx.map_arg(node.args[0], inner.__getitem__)
                self.env |= dict(zip(results, made, strict=True))
            else:
                inner[node] = self.operator(node, inner, stack)

    def operator(self, node: fx.Node, inner: Mapping[fx.Node, Any], stack: Any) -> fx.Node:
        made = self.graph.create_node(
            "call_function",
            node.target,
            fx.map_arg(node.args, inner.__getitem__),
            fx.map_arg(node.kwargs, inner.__getitem__),
            name=f"{_FRESH}{node.name}",
        )
        made.meta = {"val": node.meta["val"], _STACK: stack}
        for key in ("stack_trace", "torch_fn"):
            if key in node.meta:
                made.meta[key] = node.meta[key]
        mark(made, added=True)
        return made

    def constant(self, value: Any) -> Any:
        """A tensor that an added operation has by itself: an input of the program."""
        if not isinstance(value, Tensor):
            return value
        name = f"_surgery_constant_{len(self.constants)}"
        first = next(n for n in self.graph.nodes if n.name in self.users)
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(f"c{name}")
        node.meta["val"] = self.fake(value)
        self.constants[name] = value
        spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), name)
        at = next(i for i, s in enumerate(self.specs) if s.arg.name in self.users)
        self.specs.insert(at, spec)
        self.fresh.append(node.name)
        return node

    # What stands around the graph

    def output(self, node: fx.Node) -> None:
        origin = self.source.graph.output_node()
        self.graph.output(fx.map_arg(node.args[0], self.env.__getitem__))
        made = self.graph.output_node()
        made.meta = dict(origin.meta)
        self.results = pytree.tree_leaves(made.args[0])

    def note(self) -> dict[str, Any]:
        """What is to be known of the base."""
        return {**noted(self.source.graph, self.copied), "inputs": self.fresh}

    def signature(self) -> ExportGraphSignature:
        old = self.source.program.graph_signature.output_specs
        outputs = [renamed(s, node) for s, node in zip(old, self.results, strict=True)]
        return ExportGraphSignature(self.specs, outputs)
