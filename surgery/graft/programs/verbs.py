"""What is done to an exported program: to its traced graph, and a new program is made of that."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export._tree_utils import reorder_kwargs
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from surgery.anatomy.inputs import EXAMPLE
from surgery.anatomy.state import uncollected
from surgery.graft.adapter_file import AdapterFile, facts_of, read_adapter
from surgery.graft.first import first_values
from surgery.graft.load import restore_adapter
from surgery.graft.programs.lowering import lowered
from surgery.graft.programs.raising import raised
from surgery.graft.programs.source import Source, record_of, source_of, whole
from surgery.graft.save import applied_facts
from surgery.graft.state import named_modules, surgery_of
from surgery.language.diagnostics import SurgeryError, error

SOURCE = "_surgery_source"
"""The attribute of a traced graph that has the program it was made of."""


def as_module(program: ExportedProgram, owned: Collection[str] = ()) -> fx.GraphModule:
    """``program`` as a traced graph, with what was applied to it.

    Its parameters are in the memory of the program's, but for those that are ``owned``, to be written
    to, and those that specs train.

    Raises:
        SurgeryError: S443 if it was changed by others after it was adapted.

    """
    return _raised(program, source_of(program, owned))


def as_base(program: ExportedProgram) -> fx.GraphModule:
    """The same, for what adapts: a program that others changed after it was adapted is a base."""
    try:
        return as_module(program)
    except SurgeryError as changed:
        if changed.diagnostics[0].code != "S443":
            raise
    return _raised(program, whole(program))


@uncollected()
def _raised(program: ExportedProgram, source: Source) -> fx.GraphModule:
    model = raised(source.graph, source.inputs, dict(source.tensors), program.graph_module)
    model.__dict__[SOURCE] = source
    model.__dict__[EXAMPLE] = _inputs(program)
    if source.record is not None:
        restore_adapter(model, _file(source.record, source.values))
    return model


def to_merge(program: ExportedProgram) -> fx.GraphModule:
    """``program`` as a traced graph whose layers with methods have weights of their own."""
    applied = (record_of(program) or {"applied": ()})["applied"]
    modules = {m["module"] for a in applied for m in a["methods"]}
    names = [n for n, _ in program.named_parameters() if n.rpartition(".")[0] in modules]
    return as_module(program, names)


def to_load(program: ExportedProgram, path: str | os.PathLike[str]) -> fx.GraphModule:
    """``program`` as a traced graph that has its own of what the adapter at ``path`` trains."""
    applied = read_adapter(path).content["applied"]
    return as_module(program, {n for a in applied for n in a["trained"]})


def _file(record: Mapping[str, Any], values: Mapping[str, Tensor]) -> AdapterFile:
    """What was applied, in the form of a saved adapter."""
    trained = {name for applied in record["applied"] for name in applied["trained"]}
    base = {name: facts_of(values[name], None) for name in trained}
    return AdapterFile(Path("the program"), {**record, "base": {"parameters": base}}, values)


def _inputs(program: ExportedProgram) -> tuple[Any, ...]:
    """Arguments for one forward, in the order of the graph: those of the export, or others like them."""
    given = program.example_inputs
    if given is not None:
        args, kwargs = given
        spec: Any = program.call_spec.in_spec
        return tuple(pytree.tree_leaves((args, reorder_kwargs(kwargs, spec))))
    users = {
        s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT
    }
    nodes = [n for n in program.graph.nodes if n.name in users]
    return tuple(pytree.tree_map(_like, n.meta["val"]) for n in nodes)


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.ones(
            [int(size) for size in value.shape], dtype=value.dtype, device=value.device
        )
    return int(value) if isinstance(value, torch.SymInt) else value


@uncollected()
def as_program(model: nn.Module) -> ExportedProgram:
    """A program that does what ``model``, made by :func:`as_module`, does now.

    Raises:
        SurgeryError: S446 if a method needs :func:`surgery.step`, of which a program's module knows
            nothing; S441 and S442 as :func:`lowered`.

    """
    assert isinstance(model, fx.GraphModule)
    source: Source = model.__dict__[SOURCE]
    surgery = surgery_of(model)
    if surgery is None:
        return lowered(model, source, None, {})
    stepping = {e.method.child for e in surgery.edits() if any(t.state for t in e.tensors)}
    if stepping:
        raise error(
            "S446",
            f"`{min(stepping)}` does something after each step, which an exported program cannot",
            help="train the model itself with it, then merge and export",
        )
    first: dict[str, Tensor] = {}
    paths = {id(module): path for path, module in named_modules(model)}
    for module, held in first_values(model):
        path = paths[id(module)]
        first |= {f"{path}.{n}" if path else n: f.value for n, f in held.values.items()}
    record = {
        "applied": [applied_facts(a) for a in surgery.applied],
        "flags": dict(surgery.flags),
    }
    return lowered(model, source, record, first)
