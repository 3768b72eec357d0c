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

from surgery.graft import fused, kernels

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


def _only_use(value: fx.Node) -> bool:
    return len(value.users) == 1


def _fuse_dropout(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """linear(dropout(x), A) → one node."""
    if not _is(node, functional.linear) or len(node.args) < 2:
        return None
    x, weight, *bias = node.args
    if not _is(x, functional.dropout) or (bias and bias[0] is not None) or not _only_use(x):
        return None
    return graph.call_function(fused.dropped_linear, (x.args[0], weight, *x.args[1:]))


def _fuse_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Y + s·linear(h, B) → one addmm, without the product as a tensor of its own."""
    if not _is(node, torch.add, operator.add):
        return None
    scale = node.kwargs.get("alpha", 1)
    sides = [(node.args[0], node.args[1])]
    if scale == 1:
        sides.append((node.args[1], node.args[0]))
    for base, product in sides:
        if not isinstance(base, fx.Node) or not _is(product, functional.linear):
            continue
        hidden, weight, *bias = product.args
        if _only_use(product) and not (bias and bias[0] is not None) and _is_features(base):
            return graph.call_function(fused.add_product, (base, hidden, weight, scale))
    return None


def _is_features(base: Any) -> bool:
    """Whether a node gives hidden states rather than a tensor held by a module."""
    return isinstance(base, fx.Node) and base.op != "get_attr"


def _fuse_low_rank(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """linear(x, W, b) + s·linear(linear(x, A), B) → one kernel that saves no copy of anything."""
    if not _is(node, fused.add_product):
        return None
    base, hidden, up, scale = node.args
    if not (_is(base, functional.linear) and _only_use(base)):
        return None
    if not (_is(hidden, functional.linear, fused.dropped_linear) and _only_use(hidden)):
        return None
    x, weight, *bias = base.args
    if hidden.args[0] is not x or _is_features(weight):
        return None
    down = hidden.args[1]
    dropping = hidden.args[2:] if hidden.target is fused.dropped_linear else (0, False)
    if hidden.target is functional.linear and any(a is not None for a in hidden.args[2:]):
        return None
    offset = bias[0] if bias else None
    return graph.call_function(
        fused.low_rank, (x, weight, offset, down, up, scale, *dropping, None)
    )


def _fuse_factor(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """factor · low_rank(…) → the same kernel with the factor in it."""
    if not _is(node, operator.mul):
        return None
    for factor, product in (node.args, node.args[::-1]):
        if _is(product, fused.low_rank) and _only_use(product) and _is_vector(factor):
            *front, none = product.args
            if none is None and front[2] is None:
                return graph.call_function(fused.low_rank, (*front, factor))
    return None


def _is_vector(factor: Any) -> bool:
    """Whether a node gives what depends on parameters alone."""
    return isinstance(factor, fx.Node) and (factor.op == "get_attr" or _is(factor, kernels.fold))


def _fuse_offset(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """low_rank(…) with a factor + bias → the same kernel with the bias in it."""
    if not _is(node, torch.add, operator.add) or "alpha" in node.kwargs:
        return None
    for product, bias in (node.args, node.args[::-1]):
        if _is(product, fused.low_rank) and _only_use(product) and not _is_features(bias):
            x, weight, none, *rest = product.args
            if none is None and rest[-1] is not None:
                return graph.call_function(fused.low_rank, (x, weight, bias, *rest))
    return None


_PASSES: tuple[Rewrite, ...] = (
    _fuse_dropout,
    _fuse_product,
    _fuse_low_rank,
    _fuse_factor,
    _fuse_offset,
)
