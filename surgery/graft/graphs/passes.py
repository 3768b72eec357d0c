"""Rewrites of an emitted graph that compute the same with fewer kernels, copies and saved tensors.

Each pass looks at one node and either replaces it or leaves it. They know fx nodes only: the same
passes serve every host.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import fx

from surgery.graft.graphs import fused
from surgery.graft.graphs.emit import MEANING
from surgery.graft.weights import fused_rows, slices
from surgery.layers.transposed import transposed_linear
from surgery.rules.expression import Expression, Shape

Rewrite = Callable[[fx.Graph, fx.Node], fx.Node | None]


def optimise(graph: fx.Graph, within: set[fx.Node] | None = None) -> None:
    """Run every pass over the nodes of ``graph``, or over those ``within``, until none applies."""
    for rewrite in _PASSES:
        for node in list(graph.nodes):
            if within is not None and node not in within:
                continue
            with graph.inserting_before(node):
                replacement = rewrite(graph, node)
            if replacement is None:
                continue
            if MEANING in node.meta:
                replacement.meta.setdefault(MEANING, node.meta[MEANING])
            node.replace_all_uses_with(replacement)
            if within is not None:
                within.add(replacement)
            _erase(graph, node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove ``node`` and what only it used."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for argument in inputs:
        if not argument.users and argument.op == "call_function":
            _erase(graph, argument)


def _is(value: Any, *targets: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target in targets


def _arguments(value: Any, *targets: Any) -> tuple[Any, ...] | None:
    """The arguments of a call of one of ``targets`` whose result has a single use, else None."""
    return tuple(value.args) if _is(value, *targets) and len(value.users) == 1 else None


def _sides(node: fx.Node) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The operands of a commutative call, both ways round."""
    left, right = node.args
    return (left, right), (right, left)


def _absent(arguments: tuple[Any, ...]) -> bool:
    return all(a is None for a in arguments)


def _fuse_dropout(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """linear(dropout(x), A) → one node."""
    if not _is(node, functional.linear):
        return None
    x, weight, *bias = node.args
    dropped = _arguments(x, functional.dropout)
    if dropped is None or not _absent(tuple(bias)):
        return None
    return graph.call_function(fused.dropped_linear, (dropped[0], weight, *dropped[1:]))


def _fuse_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Y + s·linear(h, B) → one addmm, without the product as a tensor of its own."""
    if not _is(node, torch.add, operator.add):
        return None
    scale = node.kwargs.get("alpha", 1)
    for base, other in _sides(node)[: 2 if scale == 1 else 1]:
        product = _arguments(other, functional.linear)
        alike = _flows(base) and _flows(other) and _features(base) == _features(other)
        if product and alike and _absent(product[2:]):
            return graph.call_function(fused.add_product, (base, *product[:2], scale))
    return None


def _flows(value: Any) -> bool:
    """Whether a node gives hidden states rather than a tensor made of parameters."""
    if not isinstance(value, fx.Node):
        return False
    meaning: Expression | None = value.meta.get(MEANING)
    return value.op != "get_attr" if meaning is None else meaning.varies


def _features(value: fx.Node) -> Shape:
    """The dim of a node's features, where it is known."""
    meaning: Expression | None = value.meta.get(MEANING)
    return () if meaning is None else meaning.shape[-1:]


def _fuse_low_rank(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """linear(x, W, b) + s·linear(linear(x, A), B) → one kernel that saves no copy of anything."""
    if not _is(node, fused.add_product):
        return None
    first, second, up, scale = node.args
    base = _arguments(first, functional.linear)
    hidden = _arguments(second, functional.linear)
    dropped = _arguments(second, fused.dropped_linear)
    if hidden and _absent(hidden[2:]):
        dropped = (*hidden[:2], 0, False)
    if not base or not dropped or dropped[0] is not base[0] or _flows(base[1]):
        return None
    x, weight, bias = (*base, None)[:3]
    down, *dropping = dropped[1:]
    return graph.call_function(fused.low_rank, (x, weight, bias, down, up, scale, *dropping, None))


def _fuse_factor(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Factor · low_rank(…) → the same kernel with the factor in it."""
    if not _is(node, operator.mul):
        return None
    for factor, other in _sides(node):
        product = _arguments(other, fused.low_rank)
        if product and product[-1] is None and product[2] is None and _is_vector(factor, node):
            return graph.call_function(fused.low_rank, (*product[:-1], factor))
    return None


def _is_vector(value: Any, like: fx.Node) -> bool:
    """Whether a node gives a vector, made of parameters alone, with the features of ``like``."""
    if not isinstance(value, fx.Node) or _flows(value):
        return False
    meaning: Expression | None = value.meta.get(MEANING)
    return meaning is None or meaning.shape == _features(like)


def _fuse_offset(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """low_rank(…) with a factor + bias → the same kernel with the bias in it."""
    if not _is(node, torch.add, operator.add) or "alpha" in node.kwargs:
        return None
    for other, bias in _sides(node):
        product = _arguments(other, fused.low_rank)
        if product and product[2] is None and product[-1] is not None and _is_vector(bias, node):
            x, weight, _, *rest = product
            return graph.call_function(fused.low_rank, (x, weight, bias, *rest))
    return None


def _fuse_rows(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """put(y, rows(y) + s·linear(h, B)), as often as it is nested, → one kernel without copies."""
    if not _is(node, slices.put_rows):
        return None
    parts: list[tuple[Any, Any]] = []
    whole: Any = node
    while _is(whole, slices.put_rows) and (whole is node or len(whole.users) == 1):
        whole, part, layout, axis = whole.args
        if axis != -1:
            return None
        parts.insert(0, (part, layout))
    updates = [_update(whole, part, layout) for part, layout in parts]
    inner = _base_of(whole)
    if inner is None or len(whole.users) != len(parts) + 1:
        return None
    x, weight, bias, transposed = inner
    if any(u is None or u[0] is not x for u in updates):
        return None
    written = tuple(u[1:] for u in updates if u)
    return graph.call_function(fused_rows.low_rank_rows, (x, weight, bias, transposed, written))


def _base_of(whole: Any) -> tuple[Any, Any, Any, bool] | None:
    """x, weight and bias of a product with a weight that a module holds, and if that is [m, n]."""
    for target in (functional.linear, transposed_linear):
        if _is(whole, target) and not _flows(whole.args[1]):
            x, weight, bias = (*whole.args, None)[:3]
            return x, weight, bias, target is transposed_linear
    return None


def _update(whole: Any, part: Any, layout: Any) -> tuple[Any, ...] | None:
    """x, and the update that ``part`` is of the rows of ``layout`` in ``whole``."""
    product = _arguments(part, fused.add_product)
    taken = product and _arguments(product[0], slices.take_rows)
    if not product or not taken or taken[0] is not whole or taken[1] != layout:
        return None
    hidden = _arguments(product[1], functional.linear)
    dropped = _arguments(product[1], fused.dropped_linear)
    if hidden and _absent(hidden[2:]):
        dropped = (*hidden[:2], 0, False)
    if not dropped:
        return None
    x, down, rate, training = dropped
    return x, layout, down, product[2], product[3], rate, training


_PASSES: tuple[Rewrite, ...] = (
    _fuse_dropout,
    _fuse_product,
    _fuse_low_rank,
    _fuse_factor,
    _fuse_offset,
    _fuse_rows,
)
