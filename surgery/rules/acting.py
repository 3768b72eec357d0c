"""Which parameters can act: those that the result has a derivative for, by the structure of its rule.

A derivative may be zero for some values (LoRA's A, while B is 0); here it is zero for all of them,
since what a parameter goes into is multiplied by 0, taken from itself, detached, or replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from surgery.language.source import Span
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import Expression, Shape, number, rebuild
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.simplify import combined, make, recording


@dataclass(frozen=True)
class Lost:
    """Where parameters stop to matter, and why."""

    names: frozenset[str]
    reason: str
    span: Span | None


@dataclass
class Acting:
    """``trained`` are the params that the results have a derivative for, ``read`` those they use."""

    trained: frozenset[str]
    read: frozenset[str]
    lost: tuple[Lost, ...]


def acting(results: Iterable[Expression], sizes: Mapping[str, Scalar] | None = None) -> Acting:
    """Follow ``results`` down to the params; ``sizes`` are those of a site, if one is known."""
    walk = _LiveParams({} if sizes is None else sizes)
    with recording() as dropped:
        settled = [walk.settled(e) for e in results]
    trained = frozenset[str]().union(*(walk.live(e) for e in settled))
    read = frozenset[str]().union(*(_params(e) for e in settled))
    lost = [Lost(_names(d.lost), d.reason, d.span) for d in dropped]
    return Acting(trained, read, (*lost, *walk.lost))


def _names(leaves: Iterable[Expression]) -> frozenset[str]:
    return frozenset(leaf.name for leaf in leaves if leaf.op == "param")


def _params(e: Expression) -> frozenset[str]:
    if e.op == "spread":
        return _params(e.arguments[0])
    if e.op == "param":
        return frozenset((e.name,))
    return frozenset[str]().union(*map(_params, e.arguments))


class _LiveParams:
    def __init__(self, sizes: Mapping[str, Scalar]):
        self.sizes = sizes
        self.lost: list[Lost] = []
        self.memo: dict[Expression, frozenset[str]] = {}

    def known(self, dim: Dim) -> Dim:
        """``dim`` as a number, where its names have sizes."""
        return Dim.of(dim.value(self.sizes)) if dim.names() <= self.sizes.keys() else dim

    def settled(self, e: Expression) -> Expression:
        """``e`` with sizes put in, and with sums written as one."""

        def change(e: Expression) -> Expression | None:
            return None if e.number is None else number(self.known(e.number), e.span, e.shape)

        def build(old: Expression, arguments: tuple[Expression, ...]) -> Expression:
            return combined(make(old.op, arguments, old.shape, old.attributes, old.span))

        return rebuild(e, change, build)

    def live(self, e: Expression) -> frozenset[str]:
        if e not in self.memo:
            self.memo[e] = self._live(e)
        return self.memo[e]

    def _live(self, e: Expression) -> frozenset[str]:
        if e.op == "param":
            return frozenset((e.name,))
        primitive = PRIMITIVES.get(e.op)
        if primitive and primitive.detaches:
            self.lost.append(Lost(_names(e.leaves), "no gradient passes what is detached", e.span))
            return frozenset()
        if self._is_constant(e):
            reason = "this is the same whatever it is taken of"
            self.lost.append(Lost(_names(e.leaves), reason, e.span))
            return frozenset()
        unread = primitive.only_shape if primitive else _ONLY_SHAPE.get(e.op, ())
        arguments = [a for i, a in enumerate(e.arguments) if i not in unread]
        if e.op == "linear" and arguments[1].number is not None:
            # Multiplied by zeros, which stay only to give the result its shape.
            arguments = arguments[2:] if not arguments[1].number.terms else arguments
        return frozenset[str]().union(*map(self.live, arguments))

    def _is_constant(self, e: Expression) -> bool:
        """A softmax over one place, or the sum of one over all: a gate that weighs one thing."""
        primitive = PRIMITIVES.get(e.op)
        if primitive is None or not primitive.axis:
            return False
        inner = e.arguments[0]
        of = PRIMITIVES.get(inner.op)
        if primitive.reduces and primitive.linear and of is not None and of.sums_to is not None:
            return inner.attributes == e.attributes
        if primitive.of_constant is None or self.size(inner.shape, e.attribute("axis")) != 1:
            return False
        # One place is a constant along its axis; the question is if the result has its value in it.
        value = Dim.named("value")
        return not primitive.of_constant(value, Dim.of(1)).names()

    def size(self, shape: Shape, axis: object) -> Scalar | None:
        return self.known(shape[axis]).number if isinstance(axis, int) else None


_ONLY_SHAPE = {"spread": (1,), "expand": (1,)}
"""Arguments of which the shape alone counts, of what is no primitive."""
