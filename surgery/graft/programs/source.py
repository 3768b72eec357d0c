"""An exported program in its parts: its base, and what was applied to that."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from surgery.graft.programs.envelope import FIRST
from surgery.graft.programs.modules import tied
from surgery.graft.programs.undoing import CUSTOM, KEY, changed_since, marked, undo, unmark

HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True)
class Source:
    """The base of ``program``: its own graph, its inputs, and its tensors, first values among them.

    ``record`` is what was applied, as in the header of a saved adapter, and ``values`` the
    parameters that it has now.
    """

    program: ExportedProgram
    graph: fx.Graph
    inputs: tuple[InputSpec, ...]
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any] | None
    values: Mapping[str, Tensor]

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self

    @property
    def held(self) -> dict[str, str]:
        """The names of parameters, buffers and constants by those of their placeholders."""
        return {s.arg.name: str(s.target) for s in self.inputs if s.kind in HELD}  # type: ignore[union-attr]


def record_of(program: ExportedProgram) -> Mapping[str, Any] | None:
    """What the meta of ``program`` says was applied to it, if anything."""
    custom: dict[str, Any] = program.graph_module.meta.get(CUSTOM) or {}
    text: str | None = custom.get(KEY)
    return None if text is None else json.loads(text)


def source_of(program: ExportedProgram, owned: Collection[str] = ()) -> Source:
    """The parts of ``program``, where parameters that are ``owned`` have memory of their own.

    Raises:
        SurgeryError: S443 if it was adapted, and then changed by others.

    """
    return _parts(program, _copied(program), record_of(program), owned)


def whole(program: ExportedProgram) -> Source:
    """The parts of ``program`` where all of it is a base, whatever was applied to one before."""
    graph = _copied(program)
    for node in graph.nodes:
        if marked(node):
            unmark(node)
    return _parts(program, graph, None, ())


def _copied(program: ExportedProgram) -> fx.Graph:
    """The graph of ``program``, with the names that its signature has for inputs.

    `copy.deepcopy` of a program gives others to inputs that are called as functions of Python are:
    `input_1` for `input`.
    """
    given, graph = program.graph, fx.Graph()
    graph.output(graph.graph_copy(given, {}))
    names = iter([spec.arg.name for spec in program.graph_signature.input_specs])
    for old, new in zip(given.nodes, graph.nodes, strict=True):
        name = next(names) if old.op == "placeholder" else old.name
        if name != new.name:
            new.name = name
        if old.op == "output":
            new.meta = dict(old.meta)
    return graph


def _parts(
    program: ExportedProgram,
    graph: fx.Graph,
    record: Mapping[str, Any] | None,
    owned: Collection[str],
) -> Source:
    inputs = tuple(program.graph_signature.input_specs)
    if record is not None:
        undo(graph, record)
        inputs = tuple(s for s in inputs if s.arg.name not in record["inputs"])
    elif any(marked(n) for n in graph.nodes):
        raise changed_since("it has nodes that were added, and no note of what was applied")
    held = {s.arg.name: str(s.target) for s in inputs if s.kind in HELD}
    tensors, values = _tensors(program, graph, held, record, owned)
    return Source(program, graph, inputs, tensors, record, values)


def _tensors(
    program: ExportedProgram,
    graph: fx.Graph,
    held: Mapping[str, str],
    record: Any,
    owned: Collection[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the base, in objects of their own, and the values of what was applied.

    Parameters share the memory of the program's, but for those that are ``owned``; one that was tied
    is one again.
    """
    ties = tied(graph, held, program.state_dict)
    stored: dict[str, Any] = {**program.constants, **program.state_dict}
    flags: Mapping[str, bool] = {} if record is None else record["flags"]
    first: Mapping[str, str] = {} if record is None else record["first"]
    methods = () if record is None else [m for a in record["applied"] for m in a["methods"]]
    added = {t["stored"] for m in methods for t in m["tensors"]}
    listed = {*held.values(), *ties, *added, *first.values(), *program.constants}
    # Files keep the order of inputs, and not that of the state dict.
    names = (n for n in (*held.values(), *stored) if n in stored and n in listed)
    known: dict[str, Tensor] = {n: stored[n] for n in names}
    trained = {n for a in (record or {"applied": ()})["applied"] for n in a["trained"]}
    values = {n: known[n].detach().clone() for n in (*added, *trained)}
    apart = {id(known[ties.get(name, name)]) for name in owned}
    made: dict[str, Tensor] = {}
    copies: dict[int, nn.Parameter] = {}
    for name, tensor in known.items():
        if name in added or name.startswith(FIRST):
            continue
        other = known.get(ties.get(name, ""))
        if other is not None and torch.equal(tensor, other):
            tensor = other
        if not isinstance(tensor, nn.Parameter):
            made[name] = tensor.detach().clone() if name in program.state_dict else tensor
            continue
        if id(tensor) not in copies:
            start = first.get(name)
            data = known[start or name].detach()
            data = data.clone() if start or id(tensor) in apart else data
            copies[id(tensor)] = nn.Parameter(data, flags.get(name, tensor.requires_grad))
        made[name] = copies[id(tensor)]
    return made, values
