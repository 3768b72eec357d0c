"""The modules of an exported program: what is left of their classes, around its parameters.

A program keeps of each module its path, the name of its class, and its parameters. What reads a
weight as a layer does (`aten.linear`, a convolution, a table look-up) is a layer again, so that all
that is planned for layers can be planned for it; any other module is a name with children.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from surgery.huggingface.layers import CONV1D

_STACK = "nn_module_stack"
_HIDDEN = "_empty_nn_module_stack_from_metadata_hook"
_PADDED = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Transposed(nn.Module):
    """A layer whose weight is [in, out], as transformers' `Conv1D` has it."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


# What knows layers by their class knows this one by the name of the class that it stands for.
Transposed.__module__, _, Transposed.__qualname__ = CONV1D.rpartition(".")
Transposed.__name__ = Transposed.__qualname__


@dataclass(frozen=True)
class Reads:
    """Where a function of the graph has its input, its weight and its bias."""

    input: int
    weight: int
    bias: int | None
    make: Callable[[fx.Node, Any, Any], nn.Module]


def reads_of(node: fx.Node) -> Reads | None:
    """How ``node`` reads a weight, if it does what a layer does."""
    return _READS.get(node.target) if node.op == "call_function" else None


def stack_of(node: fx.Node) -> dict[str, str]:
    """The modules that ``node`` came from, the innermost last, with the names of their classes.

    A module's further calls have names that end in `@1`, `@2`, ….
    """
    found: dict[str, str] = {}
    for key, (path, cls) in (node.meta.get(_STACK) or {}).items():
        _, again, number = key.rpartition("@")
        name = path.partition("@")[0]
        if key != _HIDDEN:
            found[f"{name}@{number}" if again and number.isdigit() else name] = str(cls)
    return found


def parameters_of(specs: Iterable[Any]) -> dict[str, str]:
    """The names of parameters and of buffers by those of their placeholders."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {s.arg.name: s.target for s in specs if s.kind in kinds}


def build(
    graph: fx.Graph, held: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[fx.Node, str]]:
    """A module with all ``tensors`` by name, and the paths of the layers that nodes run.

    ``held`` names the tensors by the placeholders of ``graph``.
    """
    classes: dict[str, str] = {}
    for node in graph.nodes:
        for path, cls in stack_of(node).items():
            classes.setdefault(path.partition("@")[0], cls)
    root = nn.Module()
    layers: dict[fx.Node, str] = {}
    made: dict[str, nn.Module] = {}
    for node in graph.nodes:
        path = _layer_at(node, held, tensors)
        if path is None:
            continue
        layers[node] = path
        if path not in made:
            made[path] = _layer(node, path, tensors, classes.get(path))
    # Modules stand in the order of their parameters, as in the model.
    for path in dict.fromkeys([*(n.rpartition(".")[0] for n in tensors), *classes]):
        if path:
            _put(root, path, made, classes)
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        module = root.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            module._parameters[last] = tensor
        else:
            module._buffers[last] = tensor
    return root, layers


def tied(graph: fx.Graph, held: Mapping[str, str]) -> dict[str, str]:
    """Names of parameters that nothing reads, since their layers read another: the tied ones."""
    found: dict[str, str] = {}
    unread = {held[n.name] for n in graph.nodes if n.name in held and not n.users}
    for node in graph.nodes:
        reads = reads_of(node)
        weight = reads and _argument(node, reads.weight)
        inner = [*stack_of(node)]
        if reads and isinstance(weight, fx.Node) and weight.name in held and inner:
            own = f"{inner[-1].partition('@')[0]}.weight"
            if own in unread and own != held[weight.name]:
                found[own] = held[weight.name]
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
    if bias is not None and tensors.get(f"{path}.bias".lstrip(".")) is None:
        return None
    return path if last == "weight" and path else None


def _layer(node: fx.Node, path: str, tensors: Mapping[str, Tensor], cls: str | None) -> nn.Module:
    reads = reads_of(node)
    assert reads is not None
    biased = reads.bias is not None and _argument(node, reads.bias) is not None
    bias = tensors[f"{path}.bias"] if biased else None
    made = reads.make(node, tensors[f"{path}.weight"], bias)
    name = (cls or "").rpartition(".")[2]
    if name and name != type(made).__name__ and not isinstance(made, Transposed):
        made.__class__ = _named(name, type(made))
    return made


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
    schema: Any = node.target._schema
    return node.kwargs.get(schema.arguments[index].name)


def _linear(node: fx.Node, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    made = nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta")
    return _holding(made, weight, bias)


def _transposed(node: fx.Node, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    return Transposed(weight, bias)


def _embedding(node: fx.Node, weight: nn.Parameter, bias: None) -> nn.Module:
    padding = _argument(node, 2)
    known = padding if isinstance(padding, int) and padding >= 0 else None
    return _holding(nn.Embedding(*weight.shape, padding_idx=known, device="meta"), weight, None)


def _convolution(node: fx.Node, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    stride, padding, dilation, groups = (_argument(node, i) for i in (3, 4, 5, 6))
    spatial = weight.dim() - 2
    made = _PADDED[spatial](
        weight.shape[1] * (groups or 1),
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=_each(stride, 1, spatial),
        padding=padding if isinstance(padding, str) else _each(padding, 0, spatial),
        dilation=_each(dilation, 1, spatial),
        groups=groups or 1,
        bias=bias is not None,
        device="meta",
    )
    return _holding(made, weight, bias)


def _transposed_convolution(
    node: fx.Node, weight: nn.Parameter, bias: nn.Parameter | None
) -> nn.Module:
    stride, padding, beyond, groups, dilation = (_argument(node, i) for i in (3, 4, 5, 6, 7))
    spatial = weight.dim() - 2
    made = _TRANSPOSED[spatial](
        weight.shape[0],
        weight.shape[1] * (groups or 1),
        tuple(weight.shape[2:]),
        stride=_each(stride, 1, spatial),
        padding=_each(padding, 0, spatial),
        output_padding=_each(beyond, 0, spatial),
        groups=groups or 1,
        bias=bias is not None,
        dilation=_each(dilation, 1, spatial),
        device="meta",
    )
    return _holding(made, weight, bias)


def _each(given: Any, default: int, spatial: int) -> Any:
    values = [default] if given is None else list(given)
    return tuple(values * spatial if len(values) == 1 else values)


def _holding(module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    module._parameters["weight"] = weight
    if bias is not None:
        module._parameters["bias"] = bias
    return module


_ATEN = torch.ops.aten
_READS: dict[Any, Reads] = (
    {
        _ATEN.linear.default: Reads(0, 1, 2, _linear),
        _ATEN.addmm.default: Reads(1, 2, 0, _transposed),
        _ATEN.embedding.default: Reads(1, 0, None, _embedding),
    }
    | {
        overload: Reads(0, 1, 2, _convolution)
        for packet in (_ATEN.conv1d, _ATEN.conv2d, _ATEN.conv3d)
        for overload in (packet.default, packet.padding)
    }
    | {
        packet: Reads(0, 1, 2, _transposed_convolution)
        for packet in (
            _ATEN.conv_transpose1d.default,
            _ATEN.conv_transpose2d.input,
            _ATEN.conv_transpose3d.input,
        )
    }
)
