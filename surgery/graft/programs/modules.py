"""The modules of an exported program: what is left of their classes, around its parameters.

A program keeps of each module its path, the name of its class, and its parameters. What reads a
weight as a layer does (`aten.linear`, a convolution, a table look-up) is a layer again, so that all
that is planned for layers can be planned for it; any other module is a name with children.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from surgery.graft.programs.classes import alike, runs_layer, unread
from surgery.graft.programs.inner import graphs_in
from surgery.layers import Reads, kinds
from surgery.layers.transposed import Transposed

_STACK = "nn_module_stack"
_ROOT = "_export_root"
_HIDDEN = "_empty_nn_module_stack_from_metadata_hook"


def reads_of(node: fx.Node) -> Reads | None:
    """How ``node`` reads a weight, if it does what a layer of any kind does."""
    if node.op != "call_function":
        return None
    given = partial(_argument, node)
    known = (k.exported[node.target] for k in kinds() if node.target in k.exported)
    return next((reads for reads in known if reads.holds(given)), None)


def stack_of(node: fx.Node) -> dict[str, str]:
    """The modules that ``node`` came from, the innermost last, with the names of their classes.

    A module's further calls have names that end in `@1`, `@2`, …. One that has several names has
    the one by which it was called.
    """
    found: dict[str, str] = {}
    stack: Mapping[str, tuple[str, Any]] = node.meta.get(_STACK) or {}
    for key, (path, cls) in stack.items():
        _, again, number = key.rpartition("@")
        # `torch.export.export(strict=True)` puts a root of its own around branches.
        name = path.partition("@")[0]
        name = "" if name == _ROOT else name.removeprefix(f"{_ROOT}.")
        if key != _HIDDEN:
            found[f"{name}@{number}" if again and number.isdigit() else name] = str(cls)
    return found


def parameters_of(specs: Iterable[Any]) -> dict[str, str]:
    """The names of parameters and of buffers by those of their placeholders."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {s.arg.name: s.target for s in specs if s.kind in kinds}


def build(
    graph: fx.Graph, held: Mapping[str, str], tensors: Mapping[str, Tensor], graphs: nn.Module
) -> tuple[nn.Module, dict[fx.Node, str], dict[str, str]]:
    """A module with all ``tensors`` by name, the paths of the layers that nodes run, and the shared.

    ``held`` names the tensors by the placeholders of ``graph``, and ``graphs`` has the graphs in it.
    """
    inner = [*graphs_in(graph, held, graphs)]
    classes: dict[str, str] = {}
    for node in (n for g in (graph, *(g for g, _ in inner)) for n in g.nodes):
        for path, cls in stack_of(node).items():
            classes.setdefault(path.partition("@")[0], cls)
    root = nn.Module()
    same = shared(tensors, classes)
    layers: dict[fx.Node, str] = {}
    made: dict[str, nn.Module] = {}
    for node in graph.nodes:
        path = _layer_at(node, held, tensors)
        if path is None:
            continue
        path = first_name(path, same)
        cls = classes.get(path)
        own = runs_layer(node, cls)
        if own or _alone(graph, node, path):
            layers[node] = path
            if path not in made:
                made[path] = _layer(node, path, tensors, cls) if own else alike(path, cls, tensors)
    for within, names in inner:
        for node in within.nodes:
            path = _layer_at(node, names, tensors)
            if path is not None and path not in made and runs_layer(node, classes.get(path)):
                made[path] = _layer(node, path, tensors, classes.get(path))
    for path, cls in classes.items():
        if path not in made and (layer := unread(path, cls, tensors)) is not None:
            made[path] = _called(layer, cls)
    # Modules stand in the order of their parameters, as in the model.
    for path in dict.fromkeys([*(n.rpartition(".")[0] for n in tensors), *classes]):
        if path and first_name(path, same) == path:
            _put(root, path, made, classes)
    for path, first in same.items():
        parent, _, last = path.rpartition(".")
        _put(root, parent, made, classes).add_module(last, root.get_submodule(first))
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        module = root.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            module._parameters[last] = tensor
        else:
            module._buffers[last] = tensor
    return root, layers, same


def tied(graph: fx.Graph, held: Mapping[str, str], stored: Iterable[str]) -> dict[str, str]:
    """Names of parameters that nothing reads, since their modules read another: the tied ones.

    All parameters that the program has ``stored`` need not be inputs of the graph.
    """
    found: dict[str, str] = {}
    unread = {held[n.name] for n in graph.nodes if n.name in held and not n.users}
    unread.update(set(stored).difference(held.values()))
    for node in graph.nodes if unread else ():
        inner = [path.partition("@")[0] for path in stack_of(node)][-1:]
        for value in node.all_input_nodes if inner else ():
            name = held.get(value.name, "")
            own = f"{inner[0]}.{name.rpartition('.')[2]}".lstrip(".")
            if own in unread and name:
                found[own] = name
    return found


def _layer_at(node: fx.Node, held: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str | None:
    """The path of the layer that ``node`` runs: that of the module it came from, or of its weight."""
    reads = reads_of(node)
    weight = reads and _argument(node, reads.weight)
    if reads is None or not isinstance(weight, fx.Node) or weight.name not in held:
        return None
    name = held[weight.name]
    if not isinstance(tensors.get(name), nn.Parameter):
        return None
    inner = [*stack_of(node)]
    own = f"{inner[-1].partition('@')[0]}.weight".lstrip(".") if inner else name
    if tensors.get(own) is tensors[name]:
        name = own
    path, _, last = name.rpartition(".")
    bias = None if reads.bias is None else _argument(node, reads.bias)
    if isinstance(bias, fx.Node):
        own = f"{path}.bias".lstrip(".")
        if own not in tensors or tensors.get(held.get(bias.name, "")) is not tensors[own]:
            return None
    return path if last == "weight" and path else None


def _layer(node: fx.Node, path: str, tensors: Mapping[str, Tensor], cls: str | None) -> nn.Module:
    reads = reads_of(node)
    assert reads is not None
    biased = reads.bias is not None and _argument(node, reads.bias) is not None
    bias = tensors[f"{path}.bias"] if biased else None
    return _called(reads.make(partial(_argument, node), tensors[f"{path}.weight"], bias), cls)


def shared(tensors: Mapping[str, Tensor], classes: Mapping[str, str]) -> dict[str, str]:
    """The further names of modules that have several, each with the first one.

    A program does not say that two names are of one module. They are if all that is in one, of
    two parameters at least, is in the other; single weights are tied between layers, too.
    """
    inside: dict[str, list[tuple[str, int]]] = {}
    for name, tensor in tensors.items():
        path = name.rpartition(".")[0]
        while path:
            inside.setdefault(path, []).append((name.removeprefix(f"{path}."), id(tensor)))
            path = path.rpartition(".")[0]
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    for path in sorted(inside, key=lambda p: p.count(".")):
        if first_name(path, same) == path and len({key for _, key in inside[path]}) > 1:
            key = (classes.get(path), *inside[path])
            if first.setdefault(key, path) != path:
                same[path] = first[key]
    return same


def first_name(path: str, same: Mapping[str, str]) -> str:
    """The first name of the module at ``path``, given the names that are the ``same``."""
    above = path
    while above and same:
        if above in same:
            return first_name(f"{same[above]}{path[len(above) :]}", same)
        above = above.rpartition(".")[0]
    return path


def _called(made: nn.Module, cls: str | None) -> nn.Module:
    """``made``, of a class that has the last name of ``cls``."""
    name = (cls or "").rpartition(".")[2]
    if name and name != type(made).__name__ and not isinstance(made, Transposed):
        made.__class__ = _named(name, type(made))
    return made


def _alone(graph: fx.Graph, node: fx.Node, path: str) -> bool:
    """Whether the module at ``path`` does what `nn.Linear` does, as ``node``, and nothing else."""
    inside = [n for n in graph.nodes if path in {p.partition("@")[0] for p in stack_of(n)}]
    same = all((n.target, n.args[1:]) == (node.target, node.args[1:]) for n in inside)
    return node.target is torch.ops.aten.linear.default and bool(inside) and same


def _put(
    root: nn.Module, path: str, layers: Mapping[str, nn.Module], classes: Mapping[str, str]
) -> nn.Module:
    """The module at ``path`` below ``root``, which is made if there is none."""
    if not path:
        return root
    parent, _, last = path.rpartition(".")
    holder = _put(root, parent, layers, classes)
    if last not in holder._modules:
        name = classes.get(path, "Module").rpartition(".")[2]
        holder.add_module(last, layers.get(path) or _named(name, nn.Module)())
    return holder.get_submodule(last)


@cache
def _named(name: str, base: type[nn.Module]) -> type[nn.Module]:
    return base if name == base.__name__ else type(name, (base,), {})


def _argument(node: fx.Node, index: int) -> Any:
    """An argument of a function by its place in the schema; None if it has its default."""
    if index < len(node.args):
        return node.args[index]
    target: Any = node.target
    return node.kwargs.get(target._schema.arguments[index].name)
