"""Inputs that are no features yet: a convolution's patches, an embedding's ids.

Such an input only ever meets `linear`. What a rule does to it before is moved into the weight:
linear(v·x, A) = linear(x, A·v), and linear(x + v, A) = linear(x, A) + A·v.
"""

from __future__ import annotations

from surgery.language.diagnostics import SurgeryError, error
from surgery.rules.affine import NotAffine, merge
from surgery.rules.expression import (
    Expression,
    expanded,
    features_of,
    is_number,
    number,
    operand,
    walk,
    with_shape,
)
from surgery.rules.groups import Groups
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import ONE
from surgery.rules.simplify import make


def absorbed(e: Expression, grouped: bool = False) -> Expression | None:
    """``e`` as one `linear` of the input itself, where it is affine in that and nothing is drawn.

    What a rule does to patches or ids by names of dims becomes part of the weight so.
    """
    if not _is_settled(e) or len(features_of(e.shape)) != 1:
        return None
    x = next((leaf for leaf in e.leaves if leaf == operand("x", ())), None)
    found = merge(e, grouped)
    if x is None or isinstance(found, NotAffine):
        return None
    bias = () if is_number(found.bias, 0) else (found.bias,)
    return Expression("linear", (x, found.weight, *bias), (), e.shape, e.span)


def _is_settled(e: Expression) -> bool:
    """Whether ``e`` is the same in training as in evaluation, with the same gradients."""
    rows = [PRIMITIVES.get(part.op) for part in walk(e) if part.varies]
    return not any(row and (row.random or row.detaches) for row in rows)


def mixes_input(e: Expression) -> bool:
    """Whether ``e`` makes other features of an input that is no features yet, not by `linear`."""
    primitive = PRIMITIVES.get(e.op)
    mixing = primitive is not None and not primitive.elementwise and not primitive.inference
    return mixing and e.op not in ("linear", "matmul") and e.varies and not is_real(e)


def push_input(e: Expression) -> Expression:
    """``linear(f(x), A, b)`` with ``f`` moved into the weight by one step.

    Raises:
        SurgeryError: S412 if it cannot be moved there.

    """
    x, weight, *rest = e.arguments
    match x.op:
        case "multiply":
            for factor, inner in (x.arguments, x.arguments[::-1]):
                if _is_vector(factor):
                    scaled = make("multiply", (weight, factor), weight.shape)
                    return make("linear", (inner, scaled, *rest), e.shape, span=e.span)
                if is_real(factor) and factor.varies and factor.shape[-1] == ONE:
                    made = make("linear", (inner, weight), e.shape, span=e.span)
                    return _plus(make("multiply", (factor, made), e.shape), rest, e)
        case "divide" if _is_vector(x.arguments[1]):
            inner, factor = x.arguments
            scaled = make("divide", (weight, factor), weight.shape)
            return make("linear", (inner, scaled, *rest), e.shape, span=e.span)
        case "negate":
            turned = make("negate", (weight,), weight.shape)
            return make("linear", (x.arguments[0], turned, *rest), e.shape, span=e.span)
        case "add" | "subtract" if all(a.varies or _is_vector(a) for a in x.arguments):
            left, right = (
                make("linear", (_features(a, x), weight), e.shape, span=e.span) for a in x.arguments
            )
            return _plus(make(x.op, (left, right), e.shape, span=e.span), rest, e)
        case "spread" if _is_vector(x.arguments[0]):
            value, like = x.arguments
            made = make("linear", (_features(value, x), weight, *rest), e.shape, span=e.span)
            return make("spread", (made, make("linear", (like, weight), e.shape)), e.shape)
        case _:
            moved = _inward(x) if _passes(x) else None
            if moved is not None:
                return make("linear", (moved, weight, *rest), e.shape, span=e.span)
            whole = absorbed(e)
            if whole is not None:
                return whole
    raise _meaningless(x, e)


_ARITHMETIC = ("multiply", "divide", "negate", "add", "subtract")
"""What is moved into a weight, above."""


def _passes(x: Expression) -> bool:
    """Whether the value of ``x`` in evaluation is its first argument, as of dropout and detach."""
    primitive = PRIMITIVES.get(x.op)
    return primitive is not None and primitive.inference


def _inward(x: Expression) -> Expression | None:
    """`detach(v * x)` as `detach(v) * detach(x)`, and the like; None if nothing is equal."""
    inner, *rate = x.arguments
    if _passes(inner) and not is_input(inner):
        moved = _inward(inner)
        return moved and make(x.op, (moved, *rate), x.shape)
    if inner.op not in _ARITHMETIC:
        return None
    random = PRIMITIVES[x.op].random
    if random and PRIMITIVES[inner.op].is_additive and inner.arguments[1:]:
        # dropout(x + y) drops both at one place; apart, each would be dropped at its own.
        return None
    parts = tuple(
        make(x.op, (a, *rate), a.shape) if a.varies or not random else a for a in inner.arguments
    )
    return make(inner.op, parts, inner.shape, inner.attributes, inner.span)


def _plus(value: Expression, bias: list[Expression], e: Expression) -> Expression:
    return make("add", (value, *bias), e.shape, span=e.span) if bias else value


def _is_vector(e: Expression) -> bool:
    """Whether ``e`` is known, as a number or one for each feature."""
    return not e.varies and all(d == ONE for d in e.shape[:-1])


def _features(e: Expression, like: Expression) -> Expression:
    """What is known, with a value for each feature of ``like``."""
    size = like.shape[-1:]
    if e.varies and is_real(e) and e.shape[-1] == ONE != size[-1]:
        return make("multiply", (e, expanded(number(1), size)), like.shape)
    if e.varies:
        return e
    if e.number is not None:
        return with_shape(e, size)
    if len(e.shape) > 1:
        e = Expression("vector", (e,), (), e.shape[-1:])
    return expanded(e, size) if e.shape[-1:] == (ONE,) != size else e


def is_real(x: Expression) -> bool:
    """Whether ``x`` is a tensor of features, not still made of patches or ids."""
    if not x.varies:
        return True
    if is_input(x):
        return False
    return x.op in ("linear", "matmul", "base", "host") or all(is_real(a) for a in x.arguments)


def is_input(x: Expression) -> bool:
    """Whether ``x`` is the input as it is given, but for what acts on each of its elements alone."""
    while _passes(x):
        x = x.arguments[0]
    return x.op == "operand" and x.name == "x"


def names_dims_of_groups(e: Expression, groups: Groups) -> bool:
    """Whether ``e`` names dims of what is there once in each group of a convolution."""
    primitive = PRIMITIVES.get(e.op)
    by_name = primitive is not None and primitive.form == "dims"
    return by_name and any(a.varies and groups.place(a) == "groups" for a in e.arguments)


def check_patches(result: Expression, grouped: bool = False) -> None:
    """Hold a rule's result against an input of patches or ids.

    Raises:
        SurgeryError: S412 where anything but `linear` would see them.

    """
    done: set[Expression] = set()
    groups = Groups()

    def check(e: Expression) -> None:
        if e in done or not e.varies:
            return
        done.add(e)
        if is_input(e):
            raise _meaningless(e, e)
        apart = grouped and names_dims_of_groups(e, groups)
        if (apart or mixes_input(e)) and (whole := absorbed(e, grouped)) is not None:
            check(whole)
            return
        if apart:
            raise _meaningless(e, e)
        product = e.op in ("linear", "matmul")
        primitive = PRIMITIVES.get(e.op)
        matrices = primitive is not None and primitive.form == "matrices" and not product
        if (product and e.arguments[1].varies) or matrices:
            raise _meaningless(e, e)
        x = e.arguments[0] if e.arguments else e
        if e.op == "linear" and not is_real(x) and not is_input(x):
            check(push_input(e))
            return
        if e.op == "matmul" and not is_real(x):
            turned = make("transpose", (e.arguments[1],), e.arguments[1].shape[::-1])
            check(make("linear", (x, turned), e.shape, span=e.span))
            return
        for a in e.arguments[1:] if product and is_input(x) else e.arguments:
            check(a)

    check(result)


def _meaningless(x: Expression, e: Expression) -> SurgeryError:
    what = f"`{x.op}` of the input" if not is_input(x) else "the input itself"
    if x.op == "operand":
        what = f"`{x.name}` by itself"
    return error(
        "S412",
        f"{what} has no meaning on patches or ids; only `linear` sees them",
        x.span or e.span,
    )
