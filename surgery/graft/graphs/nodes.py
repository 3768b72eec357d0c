"""Emitting into an fx graph: functions and methods as nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from surgery.graft.graphs.host import Host
from surgery.rules.expression import Expression


class GraphHost(Host):
    """Writes calls as nodes of ``graph``."""

    def __init__(self, graph: fx.Graph):
        self.graph = graph

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if isinstance(target, str):
            return self.graph.call_method(target, args, kwargs)
        return self.graph.call_function(target, args, kwargs)


class FunctionHost(GraphHost):
    """Writes a function whose ``arguments`` are the leaves of what it computes."""

    def __init__(self, graph: fx.Graph, arguments: Mapping[Expression, fx.Node]):
        super().__init__(graph)
        self.arguments = arguments

    def leaf(self, expression: Expression) -> fx.Node:
        return self.arguments[expression]
