"""What a program has around its graph: tensors by name, results, and the calls of modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import OutputSpec

FIRST = "_surgery_first_"
"""How names of tensors begin that are first values of parameters which specs train."""


def calls_in(graph: fx.Graph, source: fx.Graph, program: ExportedProgram) -> list[ModuleCallEntry]:
    """What ``program`` says of the calls of modules: of those whose values are still the same.

    ``source`` is the graph that ``graph`` was rewritten from.
    """
    made = {node.name: node for node in graph.nodes}
    same = {"", None} | {n.name for n in source.nodes if _is_read_alike(n, made)}
    entries: list[ModuleCallEntry] = []
    for entry in program.module_call_graph:
        signature = entry.signature
        if signature is not None:
            inputs, outputs = [*signature.inputs], [*signature.outputs]
            known = all(getattr(value, "name", None) in same for value in (*inputs, *outputs))
            # The outermost one holds: its values are those of the whole graph.
            known = known or not entry.fqn
            signature = replace(signature, inputs=inputs, outputs=outputs) if known else None
        entries.append(replace(entry, signature=signature))
    return entries


def _is_read_alike(node: fx.Node, made: Mapping[str, fx.Node]) -> bool:
    """Whether all that read ``node`` have copies among those ``made`` that read it, too."""
    copies = (made.get(user.name) for user in node.users)
    return node.name in made and all(
        copy is not None and any(value.name == node.name for value in copy.all_input_nodes)
        for copy in copies
    )


def tensors_of(model: nn.Module, program: ExportedProgram) -> dict[str, Tensor]:
    """Parameters and buffers by name, in objects of their own.

    Parameters that train are in memory of their own; what is frozen shares that of the program given.
    """
    given = {_memory(t) for t in program.state_dict.values()}
    made: dict[int, nn.Parameter] = {}
    found: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in made:
            shared = parameter.requires_grad and _memory(parameter) in given
            made[id(parameter)] = nn.Parameter(parameter.detach().clone()) if shared else parameter
        found[name] = made[id(parameter)]
    return found


def unlisted(program: ExportedProgram, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the state dict of ``program`` has beside its inputs: further names of shared tensors.

    They are those of the new ``state``.
    """
    listed = {s.target for s in program.graph_signature.input_specs}
    first = {id(t): name for name, t in program.state_dict.items() if name in listed}
    return {
        name: state.get(first.get(id(tensor), ""), tensor)
        for name, tensor in program.state_dict.items()
        if name not in listed and not name.startswith(FIRST)
    }


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def renamed(spec: OutputSpec, node: Any) -> OutputSpec:
    if isinstance(node, fx.Node) and hasattr(spec.arg, "name"):
        return replace(spec, arg=replace(spec.arg, name=node.name))
    return spec
