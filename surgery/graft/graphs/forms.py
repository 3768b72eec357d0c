"""How the function of each primitive is called: by the form that its row says, or in a cheaper one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from surgery.graft.graphs import kernels, shaping
from surgery.graft.graphs.dims import emit_dims, has_several
from surgery.graft.graphs.factors import low_rank_norm
from surgery.graft.graphs.host import Emitting
from surgery.rules.expression import Expression, is_leading, operand
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import ONE

Form = Callable[[Emitting, Expression], Any]


def form(e: Expression) -> Form:
    """What emits ``e`` itself."""
    return _SPECIAL.get(e.op) or _FORMS[PRIMITIVES[e.op].form]


def function(path: str) -> Any:
    """The function that a primitive names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def values(emitter: Emitting, e: Expression) -> Any:
    """A function of each element alone."""
    tensors = [a for a in e.arguments if not emitter.is_number(a)]
    run = function(PRIMITIVES[e.op].torch)
    if not tensors:
        numbers = [torch.tensor(emitter.emit(a), dtype=torch.float64) for a in e.arguments]
        return run(*numbers).item()
    if _spans(tensors, e):
        arguments = [emitter.aligned(a, e) for a in e.arguments]
    else:
        arguments = [_filled(emitter, a, tensors[0], e) for a in e.arguments]
    return emitter.host.call(run, *arguments)


def _filled(emitter: Emitting, e: Expression, like: Expression, within: Expression) -> Any:
    """``e`` aligned, of a number that stands for more than what it meets."""
    if not emitter.is_number(e) or not e.shape:
        return emitter.aligned(e, within)
    value = emitter.tensor(e, like)
    return emitter.beside(value) if within.varies and not has_several(within) else value


def add(emitter: Emitting, e: Expression) -> Any:
    """A sum, with a number that scales one term in the same kernel."""
    left, right = e.arguments
    for one, other in ((left, right), (right, left)):
        if other.op == "multiply" and e.varies and one.varies and other.varies:
            for factor, value in (other.arguments, other.arguments[::-1]):
                if factor.number is not None:
                    scale = emitter.scalar(factor.number)
                    terms = emitter.aligned(one, e), emitter.aligned(value, e)
                    return emitter.host.call(torch.add, *terms, alpha=scale)
    return values(emitter, e)


def matmul(emitter: Emitting, e: Expression) -> Any:
    """A product; of what flows it is a linear layer's, with that one's cheaper forms."""
    left, right = e.arguments
    if not e.varies:
        return matrices(emitter, e)
    transposed = Expression("transpose", (right,), (), right.shape[::-1])
    return emitter.emit(Expression("linear", (left, transposed), (), e.shape, e.span))


def divide(emitter: Emitting, e: Expression) -> Any:
    """A quotient; one by the norm of a row has a value at a row of zeros."""
    value, divisor = e.arguments
    norm = divisor.arguments[0] if divisor.op == "detach" else divisor
    if norm.op != "row_norm":
        return values(emitter, e)
    return emitter.host.call(kernels.over_norm, *(emitter.aligned(a, e) for a in (value, divisor)))


def parts(emitter: Emitting, e: Expression) -> Any:
    """One of several results, which are computed together once."""
    if not e.attributes:
        values = map(emitter.emit, e.arguments)
        return emitter.host.call(function(PRIMITIVES[e.op].torch), *values)
    together = Expression(e.op, e.arguments)
    return emitter.host.call(operator.getitem, emitter.emit(together), e.attribute("_part"))


def in_training(emitter: Emitting, e: Expression) -> Any:
    """A function that is told whether the module trains."""
    run = function(PRIMITIVES[e.op].torch)
    return emitter.host.call(run, *map(emitter.emit, e.arguments), emitter.host.training())


def drawn(emitter: Emitting, e: Expression) -> Any:
    """What is drawn for each step of training, and fixed in evaluation."""
    draw, fixed = (emitter.emit(a) for a in e.arguments)
    training = emitter.host.training()
    return emitter.host.call(kernels.drawn, draw, fixed, bool(e.attribute("nested")), training)


def _axis(emitter: Emitting, e: Expression) -> int:
    """The axis that is meant, where features come before the places rules write before them."""
    axis = int(e.attribute("axis"))  # type: ignore[arg-type]
    if not e.varies or not emitter.first or has_several(e.arguments[0]):
        return axis
    if axis >= -1 - emitter.spatial:
        return -1 - emitter.spatial if axis == -1 else axis + 1
    return axis - (emitter.groups > 1 and emitter.place(e) == "groups")


def over(emitter: Emitting, e: Expression) -> Any:
    """A function of all elements along an axis."""
    extra = {"keepdim": True} if PRIMITIVES[e.op].reduces else {}
    return emitter.host.call(
        function(PRIMITIVES[e.op].torch),
        *map(emitter.emit, e.arguments),
        dim=_axis(emitter, e),
        **extra,
    )


def pool(emitter: Emitting, e: Expression) -> Any:
    """A mean over tokens, padding left out where a mask tells it."""
    states = e.arguments[0]
    while varying := [a for a in states.arguments if a.varies]:
        states = varying[0]
    mask = emitter.host.real(emitter.emit(states))
    if mask is None:
        return over(emitter, e)
    return emitter.host.call(kernels.pool, emitter.emit(e.arguments[0]), mask, _axis(emitter, e))


def along(emitter: Emitting, e: Expression) -> Any:
    """A function that joins its arguments along an axis."""
    like = next(a for a in e.arguments if not emitter.is_number(a))
    arguments = [
        emitter.placed(emitter.tensor(a, like), a, emitter.place(e))
        if a.varies
        else emitter.tensor(a, like)
        for a in e.arguments
    ]
    if e.varies:
        arguments = [
            v if a.varies or has_several(e) else emitter.beside(v)
            for v, a in zip(arguments, e.arguments, strict=True)
        ]
    return emitter.host.call(function(PRIMITIVES[e.op].torch), *arguments, _axis(emitter, e))


def matrices(emitter: Emitting, e: Expression) -> Any:
    """A function of matrices and vectors that the module holds."""
    like = next((a for a in e.arguments if not emitter.is_number(a)), operand("W", ()))
    arguments = [emitter.tensor(a, like) if a.shape else emitter.emit(a) for a in e.arguments]
    held = kernels.held_linear if e.op == "linear" else function(PRIMITIVES[e.op].torch)
    return emitter.host.call(held, *arguments)


def detach(emitter: Emitting, e: Expression) -> Any:
    """A constant; the norm of W + s B A comes from its factors, without the sum."""
    inner = e.arguments[0]
    found = low_rank_norm(inner)
    if found is None:
        return emitter.host.call(torch.detach, emitter.emit(inner))
    weight, up, down, scale = found
    return emitter.host.call(
        kernels.constant_low_rank_norm,
        emitter.emit(weight),
        emitter.emit(up),
        emitter.emit(down),
        emitter.scalar(scale),
    )


def _spans(tensors: list[Expression], e: Expression) -> bool:
    """Whether ``tensors`` broadcast to the shape of ``e`` by themselves."""
    return all(
        dim == ONE or any(len(a.shape) >= back and a.shape[-back] != ONE for a in tensors)
        for back, dim in enumerate(reversed(e.shape), 1)
        if not is_leading(dim)
    )


_FORMS: dict[str, Form] = {
    "values": values,
    "matrices": matrices,
    "over": over,
    "along": along,
    "training": in_training,
    "tokens": pool,
    "dims": emit_dims,
    "parts": parts,
}
"""By the form that a primitive's row says."""
_SPECIAL: dict[str, Form] = {
    # what is no primitive
    "eye": shaping.eye,
    "range": shaping.counted,
    "expand": shaping.expand,
    "spread": shaping.spread,
    "vector": shaping.vector,
    "drawn": drawn,
    "rows": shaping.rows,
    "put": shaping.put,
    # what has a cheaper form in some places, whatever its row says
    "add": add,
    "matmul": matmul,
    "divide": divide,
    "detach": detach,
}
