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

from surgery.graft import fused

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
    """linear(dropout(x), A) → one kernel that keeps a mask of bits, not a dropped copy of x."""
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


def _fuse_magnitude(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """g·(linear(x, W) + s·linear(h, B)) + b: in training the product is computed again for g's
    gradient rather than kept.
    """
    if not _is(node, torch.add, operator.add) or "alpha" in node.kwargs:
        return None
    for scaled, bias in (node.args, node.args[::-1]):
        if _is(scaled, operator.mul) and _only_use(scaled):
            found = _magnitude(graph, scaled, bias)
            if found is not None:
                return found
    return None


def _fuse_bare_magnitude(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The same, of a layer without a bias."""
    return _magnitude(graph, node, None) if _is(node, operator.mul) else None


def _magnitude(graph: fx.Graph, scaled: fx.Node, bias: Any) -> fx.Node | None:
    for factor, product in (scaled.args, scaled.args[::-1]):
        if not _is(product, fused.add_product) or not _only_use(product):
            continue
        base, hidden, up, scale = product.args
        if not _is(base, functional.linear) or not _only_use(base):
            continue
        x, weight, *own = base.args
        if own and own[0] is not None:
            continue
        return graph.call_function(fused.magnitude, (x, weight, hidden, up, scale, factor, bias))
    return None


_PASSES: tuple[Rewrite, ...] = (
    _fuse_dropout,
    _fuse_product,
    _fuse_magnitude,
    _fuse_bare_magnitude,
)
