"""Cheaper equal forms of what reads a weight that is a sum or product of smaller ones."""

from __future__ import annotations

from collections.abc import Callable

from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression

Factored = Callable[[Expression, Expression | None, Expression | None], Expression]


def factored_linear(weight: Expression) -> Factored | None:
    """linear(x, W) for a weight that is a sum or product: through its parts, never out × in."""
    shape = (STAR, *weight.shape[:1])

    def bias_of(bias: Expression | None) -> tuple[Expression, ...]:
        return () if bias is None else (bias,)

    if weight.op == "add" and any(_is_low_rank(a) for a in weight.arguments):
        left, right = weight.arguments

        def summed(x: Expression, bias: Expression | None, _: Expression | None) -> Expression:
            one = Expression("linear", (x, left, *bias_of(bias)), (), shape)
            return Expression("add", (one, Expression("linear", (x, right), (), shape)), (), shape)

        return summed
    if weight.op == "matmul":
        outer, inner = weight.arguments

        def chained(x: Expression, bias: Expression | None, _: Expression | None) -> Expression:
            hidden = Expression("linear", (x, inner), (), (STAR, *inner.shape[:1]))
            return Expression("linear", (hidden, outer, *bias_of(bias)), (), shape)

        return chained
    if weight.op == "multiply" and _is_low_rank(weight):
        factor, matrix = sorted(weight.arguments, key=lambda a: a.number is None)

        def scaled(x: Expression, bias: Expression | None, _: Expression | None) -> Expression:
            product = Expression("linear", (x, matrix), (), shape)
            result = Expression("multiply", (factor, product), (), shape)
            return result if bias is None else Expression("add", (result, bias), (), shape)

        return scaled
    return None


def _is_low_rank(e: Expression) -> bool:
    if e.op == "matmul":
        return True
    if e.op == "multiply":
        return any(a.number is not None for a in e.arguments) and any(
            _is_low_rank(a) for a in e.arguments
        )
    return e.op == "add" and any(_is_low_rank(a) for a in e.arguments)


def low_rank_norm(e: Expression) -> tuple[Expression, Expression, Expression, Dim] | None:
    """row_norm(W + s·(B @ A)), whatever way round it is written."""
    if e.op != "row_norm" or e.arguments[0].op != "add":
        return None
    weight, update = e.arguments[0].arguments
    scale = Dim.of(1)
    if update.op == "multiply":
        numbers = [a for a in update.arguments if a.number is not None]
        others = [a for a in update.arguments if a.number is None]
        if len(numbers) != 1 or numbers[0].number is None:
            return None
        scale, update = numbers[0].number, others[0]
    if update.op != "matmul":
        return None
    return weight, update.arguments[0], update.arguments[1], scale
