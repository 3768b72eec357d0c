"""The graphs within the graph of a program: branches, loops, what runs without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx, nn
from torch._ops import HigherOrderOperator


def values_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that ``node`` reads, in order, each as often as it does."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def graphs_in(
    graph: fx.Graph, held: Mapping[str, str], root: nn.Module
) -> Iterator[tuple[fx.Graph, dict[str, str]]]:
    """Each graph that ``graph`` runs as a part of one function, at any depth, with what it is given.

    ``root`` has them as modules. Of what is given, the tensors that a program holds are named by
    the placeholders, as ``held`` names them for ``graph``.
    """
    for node in graph.nodes:
        if not isinstance(node.target, HigherOrderOperator):
            continue
        values = values_of(node)
        operands = [v for v in values if v.op != "get_attr"]
        for value in values:
            inner = root.get_submodule(str(value.target)) if value.op == "get_attr" else None
            if not isinstance(inner, fx.GraphModule):
                continue
            places = [n for n in inner.graph.nodes if n.op == "placeholder"]
            given = operands[len(operands) - len(places) :] if len(places) <= len(operands) else []
            names = {
                p.name: held[v.name] for p, v in zip(places, given, strict=False) if v.name in held
            }
            yield inner.graph, names
            yield from graphs_in(inner.graph, names, inner)
