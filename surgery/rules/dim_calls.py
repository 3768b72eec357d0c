"""Calls that name dims: `split`, `join`, `transpose` of two of them, `eye`, and `dot`.

What a call comes to is in its expression's attributes, by position and by size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError, error
from surgery.rules.contraction import dot
from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Attribute, Expression, eye, is_leading, number
from surgery.rules.named_dims import (
    Caller,
    dim_named,
    factors,
    position,
    positions,
    tensors_of,
    unclear,
)
from surgery.rules.operands import scalar, tensor
from surgery.rules.ranges import SIZE
from surgery.rules.shapes import show_shape
from surgery.rules.simplify import make


def _sizes(argument: syntax.Argument, names: Caller) -> list[Dim]:
    sizes: list[Dim] = []
    for factor in factors(argument.value):
        size, label = dim_named(factor, names)
        names.demand(SIZE.of(size, factor.span, names.origin(factor)))
        sizes.append(size.called(label))
    return sizes


def _whole(argument: syntax.Argument, sizes: list[Dim], names: Caller) -> Dim:
    """The dim that `m` in `m = g * c` is, which must be as long as the product."""
    assert argument.name is not None
    name = syntax.Name(argument.name, span=argument.span)
    whole = scalar(names.evaluate(name), argument.span).called(argument.name)
    product = Dim.of(1)
    for size in sizes:
        product = product * size
    if not names.shapes.equal(whole, product, f"`{argument.span.text}`", argument.span):
        raise error(
            "S250",
            f"`{argument.name}` is {whole}, and `{argument.value.span.text}` is {product}",
            argument.span,
            help=f"`let` names what is left: `let g = {argument.name} / c`",
        )
    return whole


def _dims_missing(call: syntax.Call, example: str) -> SurgeryError:
    return error("S208", f"`{call.function}` needs its dims: `{example}`", call.span)


def split(call: syntax.Call, names: Caller) -> Expression:
    """`split(x, m = g * c)`: one dim becomes several, of which the last runs fastest."""
    (x,), argument = tensors_of(call, names, 1)
    if argument is None:
        raise _dims_missing(call, "split(x, m = g * c)")
    sizes = _sizes(argument, names)
    whole = _whole(argument, sizes, names)
    places = positions(x.shape, whole, argument.name or "", names.shapes)
    if len(places) != 1:
        raise unclear(whole, argument.name or "", x.shape, places, argument.span)
    at = places[0]
    shape = (*x.shape[:at], *sizes, *x.shape[at + 1 :])
    attributes = _shaped(at - len(x.shape), sizes, argument)
    return make("split", (x,), shape, attributes, call.span)


def join(call: syntax.Call, names: Caller) -> Expression:
    """`join(z, m = g * c)`: dims that stand together become one."""
    (z,), argument = tensors_of(call, names, 1)
    if argument is None:
        raise _dims_missing(call, "join(z, m = g * c)")
    sizes = _sizes(argument, names)
    whole = _whole(argument, sizes, names)
    at = [position(z, f, names) for f in factors(argument.value)]
    if at != list(range(at[0], at[0] + len(at))):
        raise error(
            "S251",
            f"the dims {show_shape(z.shape)} do not have `{argument.value.span.text}` side by side",
            argument.span,
            help="`transpose(z, g, c)` exchanges two dims",
        )
    shape = (*z.shape[: at[0]], whole, *z.shape[at[-1] + 1 :])
    attributes = _shaped(at[0] - len(shape), sizes, argument)
    return make("join", (z,), shape, attributes, call.span)


def _shaped(
    axis: int, sizes: list[Dim], argument: syntax.Argument
) -> tuple[tuple[str, Attribute], ...]:
    """The axis of the joined dim, counted from the end, and what it is made of."""
    parts = [(f"_size{i}", size) for i, size in enumerate(sizes)]
    return (("axis", axis), *parts, ("dims", " ".join(argument.span.text.split())))


def transpose(call: syntax.Call, names: Caller) -> Expression:
    """`transpose(A)` of a matrix, or `transpose(z, c, d)`: two dims change places."""
    if len(call.arguments) == 1:
        (matrix,), _ = tensors_of(call, names, 1)
        if len(matrix.shape) != 2 or STAR in matrix.shape:
            raise error(
                "S212",
                f"transpose takes a matrix, and `{matrix}` is {show_shape(matrix.shape)}",
                call.span,
                help="of other tensors it takes two dims: `transpose(z, c, d)`",
            )
        return make("transpose", (matrix,), matrix.shape[::-1], span=call.span)
    if len(call.arguments) != 3 or any(a.name for a in call.arguments):
        raise error("S208", "`transpose` takes a tensor, or a tensor and two dims", call.span)
    first, *dims = (a.value for a in call.arguments)
    z = tensor(names.evaluate(first), first.span)
    i, j = (position(z, d, names) for d in dims)
    if is_leading(z.shape[i]) or is_leading(z.shape[j]) or i == j:
        raise error("S251", "`transpose` exchanges two dims of features", call.span)
    shape = [*z.shape]
    shape[i], shape[j] = shape[j], shape[i]
    if len(shape) == 2 and STAR not in shape:
        return make("transpose", (z,), tuple(shape), span=call.span)
    attributes = (
        ("_first", i - len(shape)),
        ("_second", j - len(shape)),
        ("dims", ", ".join(d.span.text for d in dims)),
    )
    return make("exchange", (z,), tuple(shape), attributes, call.span)


def _size(call: syntax.Call, names: Caller) -> Dim:
    """The one size that a call is given, called as it is written."""
    if len(call.arguments) != 1 or call.arguments[0].name:
        raise error("S208", f"`{call.function}` takes one size", call.span)
    given = call.arguments[0].value
    size, label = dim_named(given, names)
    names.demand(SIZE.of(size, given.span, names.origin(given)))
    return size.called(label)


def _like(call: syntax.Call, names: Caller) -> Expression:
    like = names.like()
    if like is None:
        raise error(
            "S252",
            f"`{call.function}` has the dtype of a param, and none is declared above",
            call.span,
            help="declare the params first",
        )
    return like


def ones(call: syntax.Call, names: Caller) -> Expression:
    """`ones(c)`: a vector of ones."""
    return number(1, call.span, (_size(call, names),))


def counted(call: syntax.Call, names: Caller) -> Expression:
    """`range(c)`: 0, 1, … up to c - 1."""
    size = _size(call, names)
    return Expression("range", (_like(call, names),), (("size", size),), (size,), call.span)


def identity(call: syntax.Call, names: Caller) -> Expression:
    """`eye(c)`: the identity matrix, in the dtype of the weight or of a param above."""
    size = _size(call, names)
    return eye(replace(size, label=""), _like(call, names))


READERS: dict[str, Callable[[syntax.Call, Caller], Expression]] = {
    "dot": dot,
    "split": split,
    "join": join,
    "transpose": transpose,
    "eye": identity,
    "ones": ones,
    "range": counted,
}
"""How the calls of these primitives are read."""
