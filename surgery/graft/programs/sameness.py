"""Whether nodes of a rewritten graph do what those of the base did."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgery.graft.programs.modules import reads_of


def does_the_same(model: nn.Module, node: fx.Node, origin: fx.Node | None) -> bool:
    """Whether ``node`` of ``model`` does what its ``origin`` in the base did, if with other values."""
    if origin is None:
        return False
    if node.op == "call_module":
        reads = reads_of(origin)
        layer = model.get_submodule(str(node.target))
        biased = reads is not None and reads.bias is not None and _has(origin, reads.bias)
        return biased == (layer._parameters.get("bias") is not None) or (
            reads is not None and reads.bias is None
        )
    return _form(node) == _form(origin)


def _has(node: fx.Node, index: int) -> bool:
    return index < len(node.args) and node.args[index] is not None


def _form(node: fx.Node) -> Any:
    """What ``node`` does, whatever the values it reads."""
    args = fx.map_arg((node.args, node.kwargs), lambda _: "a value")
    return node.op, str(node.target), repr(args)


def same_sizes(one: fx.Node, origin: fx.Node) -> bool:
    """Whether the values that ``one`` reads have the sizes of those that ``origin`` does."""
    return [*map(_size, one.all_input_nodes)] == [*map(_size, origin.all_input_nodes)]


def _size(node: fx.Node) -> list[str]:
    """The sizes of what ``node`` gives, in text: symbols are not to be compared as numbers."""
    values = pytree.tree_leaves(node.meta.get("val"))
    return [f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else str(v) for v in values]
