"""Expressions → calls: the one place where a rule becomes torch operations.

An :class:`Emitter` turns each expression into one call of a torch function, through whatever
``call`` it is given: one that adds a node to an fx graph, or one that runs it. It knows how a kind
of layer lays out its values, and nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from surgery.graft.graphs import kernels, states
from surgery.graft.graphs.dims import has_several
from surgery.graft.graphs.forms import form
from surgery.graft.graphs.host import Host
from surgery.graft.graphs.keeping import is_worth_keeping
from surgery.graft.graphs.linears import linear
from surgery.layers import Layer
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import Expression, is_leading
from surgery.rules.groups import Groups, Place
from surgery.rules.patches import absorbed, mixes_input, names_dims_of_groups

Call = Callable[..., Any]

MEANING = "rule"
"""Under which a node's meta has the expression that it computes."""


class Emitter:
    """Emits the expressions of one site. ``features`` tells which axis carries them."""

    def __init__(
        self,
        host: Host,
        layer: Layer | None,
        sizes: Mapping[str, Scalar],
        features: str = "last",
        rank: int | None = None,
        folding: bool = False,
        known: Mapping[Expression, Any] | None = None,
    ):
        self.host = host
        self.layer = layer
        self.sizes = sizes
        self.first = features == "first"
        self.spatial = layer.spatial if layer else (rank or 2) - 2
        self.groups = layer.groups if layer else 1
        self.folding = folding
        self._groups = Groups()
        self.done: dict[Expression, Any] = dict(known or {})

    def place(self, e: Expression) -> Place:
        """Where ``e`` is in a grouped convolution."""
        return self._groups.place(e)

    def emit(self, e: Expression) -> Any:
        """The value of ``e``; equal expressions are computed once.

        What is there once in each group of a convolution has an axis for the groups in front of
        that of its features.
        """
        if e not in self.done:
            kept = self.folding and not e.varies and is_worth_keeping(e, self.sizes)
            value = self.host.fold(e, self) if kept else self.compute(e)
            if isinstance(value, fx.Node):
                value.meta.setdefault(MEANING, e)
            self.done[e] = value
        return self.done[e]

    def tensor(self, e: Expression, like: Expression) -> Any:
        """The value of ``e``, also of a number as a tensor; ``like`` is one that is there."""
        value = self.emit(e)
        if not isinstance(value, int | float):
            return value
        sizes = [int(d.value(self.sizes)) for d in e.shape if not is_leading(d)]
        return self.host.call(kernels.filled, self.emit(like), tuple(sizes), value)

    def compute(self, e: Expression) -> Any:
        """Emit ``e`` itself."""
        if e.op == "number":
            return self.scalar(e.attribute("value"))
        if e.op in ("operand", "param"):
            value = self.host.leaf(e)
            own = self.layer is not None and e.op == "operand" and e.name == "W"
            return self.layer.as_matrix(self.host.call, value) if self.layer and own else value
        if e.op == "base":
            return self.host.base(self.emit(e.arguments[0]))
        if e.op == "host":
            return self.host.held(e.name, self.emit(e.arguments[0]))
        if e.op == "linear" and e.varies:
            return linear(self, e)
        apart = self.groups > 1 and names_dims_of_groups(e, self._groups)
        if apart or (self.layer and not self.layer.kind.features and mixes_input(e)):
            whole = absorbed(e, self.groups > 1)
            if whole is not None:
                return self.emit(whole)
        return form(e)(self, e)

    def scalar(self, value: Any) -> Any:
        return value.value(self.sizes) if isinstance(value, Dim) else value

    def is_number(self, e: Expression) -> bool:
        return e.number is not None or isinstance(self.emit(e), int | float)

    def beside(self, value: Any) -> Any:
        """A vector of parameters shaped so that it broadcasts against hidden states."""
        if not self.first or not self.spatial:
            return value
        return self.host.call("view", value, -1, *[1] * self.spatial)

    def aligned(self, e: Expression, within: Expression) -> Any:
        """``e`` shaped so that it broadcasts against the hidden states of ``within``."""
        value = self.emit(e)
        if isinstance(value, int | float) or not within.varies:
            return value
        if e.varies:
            return self.placed(value, e, self.place(within))
        return self.beside(value) if e.shape and not has_several(within) else value

    def placed(self, value: Any, e: Expression, place: Place) -> Any:
        """The value of ``e`` as it is met in each group, or at the outputs of each group."""
        if self.groups == 1 or self.place(e) == place:
            return value
        if place == "groups":
            return self.host.call("unsqueeze", value, -2 - self.spatial)
        if self.place(e) == "groups" and self.layer:
            return self.host.call(states.own_group, value, self.layer.out, self.spatial)
        return value
