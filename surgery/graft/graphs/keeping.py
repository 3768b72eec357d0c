"""Which values that depend on parameters alone are kept between forwards."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from surgery.rules.cost import flops
from surgery.rules.dims import Scalar
from surgery.rules.expression import STAR, Expression, is_leading, walk
from surgery.rules.primitives import PRIMITIVES

CALL = 100_000
"""What calling a kernel costs, in floating-point operations of a product of matrices."""
COMPARISON = 32
"""What comparing an element with a copy costs, likewise."""


def is_worth_keeping(e: Expression, sizes: Mapping[str, Scalar]) -> bool:
    """Whether ``e`` costs more to compute than to keep, and to see that it still holds."""
    if STAR in e.shape or _depth(e) <= 1 or _is_several(e):
        return False
    steps = [step for step in walk(e) if step.arguments]
    if any(any(map(is_leading, step.shape)) or _is_random(step) for step in steps):
        return False
    params = [leaf for leaf in e.leaves if leaf.op == "param"]
    made = CALL * len(steps) + sum(_work(step, sizes) for step in steps)
    compared = CALL * len(params) + COMPARISON * sum(_elements(p, sizes) for p in params)
    if made < compared:
        return False
    if len(e.shape) == 1:
        return True
    # A large matrix would double a layer's memory.
    return not e.reads("W") and _elements(e, sizes) < sum(_elements(x, sizes) for x in e.leaves)


def _is_several(e: Expression) -> bool:
    """Whether ``e`` is a decomposition before one of its results is taken."""
    primitive = PRIMITIVES.get(e.op)
    return primitive is not None and bool(primitive.parts) and not e.attributes


def _is_random(e: Expression) -> bool:
    primitive = PRIMITIVES.get(e.op)
    return e.op == "drawn" or (primitive is not None and primitive.random)


def _work(e: Expression, sizes: Mapping[str, Scalar]) -> float:
    """Floating-point operations of one step that does not depend on the input."""
    times = prod(d.value(sizes) for d in e.shape[:-1]) if e.op == "linear" else 1
    return times * flops(e).value(sizes)


def _elements(e: Expression, sizes: Mapping[str, Scalar]) -> float:
    return prod(d.value(sizes) for d in e.shape)


def _depth(e: Expression) -> int:
    return 1 + max((_depth(a) for a in e.arguments), default=0) if e.arguments else 0
