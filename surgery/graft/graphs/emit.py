"""Expressions → calls: the one place where a rule becomes torch operations.

An :class:`Emitter` turns each expression into one call of a torch function, through whatever
``call`` it is given: one that adds a node to an fx graph, or one that runs it. It knows how a kind
of layer lays out its values, and nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import fx

from surgery.graft.graphs import kernels, shaping, states
from surgery.graft.graphs.factors import low_rank_norm
from surgery.graft.graphs.host import Host
from surgery.graft.graphs.keeping import is_worth_keeping
from surgery.graft.graphs.linears import linear
from surgery.layers import Layer
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import Expression, is_leading, operand
from surgery.rules.groups import Groups, Place
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import ONE

Call = Callable[..., Any]

MEANING = "rule"
"""Under which a node's meta has the expression that it computes."""


def function(path: str) -> Any:
    """The function that a primitive names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


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
        special = _SPECIAL.get(e.op)
        return special(self, e) if special else _FORMS[PRIMITIVES[e.op].form](self, e)

    def scalar(self, value: Any) -> Any:
        return value.value(self.sizes) if isinstance(value, Dim) else value

    def _elementwise(self, e: Expression) -> Any:
        tensors = [a for a in e.arguments if not self.is_number(a)]
        run = function(PRIMITIVES[e.op].torch)
        if not tensors:
            numbers = [torch.tensor(self.emit(a), dtype=torch.float64) for a in e.arguments]
            return run(*numbers).item()
        if _spans(tensors, e):
            arguments = [self.aligned(a, e) for a in e.arguments]
        else:
            arguments = [self._filled(a, tensors[0], e) for a in e.arguments]
        return self.host.call(run, *arguments)

    def is_number(self, e: Expression) -> bool:
        return e.number is not None or isinstance(self.emit(e), int | float)

    def _filled(self, e: Expression, like: Expression, within: Expression) -> Any:
        """As :meth:`aligned`, of a number that stands for more than what it meets."""
        if not self.is_number(e) or not e.shape:
            return self.aligned(e, within)
        value = self.tensor(e, like)
        return self._beside(value) if within.varies else value

    def _beside(self, value: Any) -> Any:
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
        return self._beside(value) if e.shape else value

    def placed(self, value: Any, e: Expression, place: Place) -> Any:
        """The value of ``e`` as it is met in each group, or at the outputs of each group."""
        if self.groups == 1 or self.place(e) == place:
            return value
        if place == "groups":
            return self.host.call("unsqueeze", value, -2 - self.spatial)
        if self.place(e) == "groups" and self.layer:
            return self.host.call(states.own_group, value, self.layer.out, self.spatial)
        return value

    def _add(self, e: Expression) -> Any:
        left, right = e.arguments
        for one, other in ((left, right), (right, left)):
            if other.op == "multiply" and e.varies and one.varies and other.varies:
                for factor, value in (other.arguments, other.arguments[::-1]):
                    if factor.number is not None:
                        scale = self.scalar(factor.number)
                        terms = self.aligned(one, e), self.aligned(value, e)
                        return self.host.call(torch.add, *terms, alpha=scale)
        return self._elementwise(e)

    # primitives with something of their own

    def _matmul(self, e: Expression) -> Any:
        left, right = e.arguments
        if not e.varies:
            return self._held(e)
        transposed = Expression("transpose", (right,), (), right.shape[::-1])
        return self.emit(Expression("linear", (left, transposed), (), e.shape, e.span))

    def _divide(self, e: Expression) -> Any:
        value, divisor = e.arguments
        norm = divisor.arguments[0] if divisor.op == "detach" else divisor
        if norm.op != "row_norm":
            return self._elementwise(e)
        return self.host.call(kernels.over_norm, *(self.aligned(a, e) for a in (value, divisor)))

    def _in_training(self, e: Expression) -> Any:
        run = function(PRIMITIVES[e.op].torch)
        return self.host.call(run, *map(self.emit, e.arguments), self.host.training())

    def _axis(self, e: Expression) -> int:
        """The axis that is meant, where features come before the places rules write before them."""
        axis = int(e.attribute("axis"))  # type: ignore[arg-type]
        if not e.varies or not self.first:
            return axis
        if axis >= -1 - self.spatial:
            return -1 - self.spatial if axis == -1 else axis + 1
        return axis - (self.groups > 1 and self.place(e) == "groups")

    def _over(self, e: Expression) -> Any:
        extra = {"keepdim": True} if PRIMITIVES[e.op].reduces else {}
        return self.host.call(
            function(PRIMITIVES[e.op].torch), self.emit(e.arguments[0]), dim=self._axis(e), **extra
        )

    def _pool(self, e: Expression) -> Any:
        states = e.arguments[0]
        while varying := [a for a in states.arguments if a.varies]:
            states = varying[0]
        mask = self.host.real(self.emit(states))
        if mask is None:
            return self._over(e)
        return self.host.call(kernels.pool, self.emit(e.arguments[0]), mask, self._axis(e))

    def _along(self, e: Expression) -> Any:
        like = next(a for a in e.arguments if not self.is_number(a))
        arguments = [
            self.placed(self.tensor(a, like), a, self.place(e))
            if a.varies
            else self.tensor(a, like)
            for a in e.arguments
        ]
        if e.varies:
            arguments = [
                v if a.varies else self._beside(v)
                for v, a in zip(arguments, e.arguments, strict=True)
            ]
        return self.host.call(function(PRIMITIVES[e.op].torch), *arguments, self._axis(e))

    def _held(self, e: Expression) -> Any:
        """A function of matrices and vectors that the module holds."""
        like = next((a for a in e.arguments if not self.is_number(a)), operand("W", ()))
        arguments = [self.tensor(a, like) if a.shape else self.emit(a) for a in e.arguments]
        held = kernels.held_linear if e.op == "linear" else function(PRIMITIVES[e.op].torch)
        return self.host.call(held, *arguments)

    def _detach(self, e: Expression) -> Any:
        inner = e.arguments[0]
        found = low_rank_norm(inner)
        if found is None:
            return self.host.call(torch.detach, self.emit(inner))
        weight, up, down, scale = found
        return self.host.call(
            kernels.constant_low_rank_norm,
            self.emit(weight),
            self.emit(up),
            self.emit(down),
            self.scalar(scale),
        )


_FORMS: dict[str, Callable[[Emitter, Expression], Any]] = {
    "values": Emitter._elementwise,
    "matrices": Emitter._held,
    "over": Emitter._over,
    "along": Emitter._along,
    "training": Emitter._in_training,
    "tokens": Emitter._pool,
}
"""How a primitive's function is called, by the form that its row says."""
_SPECIAL: dict[str, Callable[[Emitter, Expression], Any]] = {
    # what is no primitive
    "eye": shaping.eye,
    "expand": shaping.expand,
    "spread": shaping.spread,
    "vector": shaping.vector,
    "rows": shaping.rows,
    "put": shaping.put,
    # what has a cheaper form in some places, whatever its row says
    "add": Emitter._add,
    "matmul": Emitter._matmul,
    "divide": Emitter._divide,
    "detach": Emitter._detach,
}


def _spans(tensors: list[Expression], e: Expression) -> bool:
    """Whether ``tensors`` broadcast to the shape of ``e`` by themselves."""
    return all(
        dim == ONE or any(len(a.shape) >= back and a.shape[-back] != ONE for a in tensors)
        for back, dim in enumerate(reversed(e.shape), 1)
        if not is_leading(dim)
    )
