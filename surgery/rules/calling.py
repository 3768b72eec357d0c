"""Calls of primitives: their arguments, the axis that they are taken over, and what comes out."""

from __future__ import annotations

from surgery.language import syntax
from surgery.language.diagnostics import did_you_mean, error
from surgery.rules.decomposing import in_parts
from surgery.rules.dim_calls import READERS
from surgery.rules.dims import Dim
from surgery.rules.expression import SITES, Attribute, Expression
from surgery.rules.named_dims import axis_of
from surgery.rules.names import Names
from surgery.rules.operands import tensor
from surgery.rules.primitive import Arguments, Primitive
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.simplify import make


def tensors(
    e: syntax.Call, arguments: tuple[syntax.Argument, ...], names: Names, arity: tuple[int, int]
) -> tuple[Expression, ...]:
    low, high = arity
    if not low <= len(arguments) <= high:
        wanted = str(low) if low == high else f"{low} or {high}"
        raise error(
            "S208",
            f"`{e.function}` takes {wanted} argument{'s' * (high > 1)}, and {len(arguments)} are given",
            e.span,
        )
    return tuple(tensor(names.evaluate(a.value), a.value.span) for a in arguments)


def call_primitive(primitive: Primitive, e: syntax.Call, names: Names) -> Expression:
    """What a call of ``primitive`` comes to.

    Raises:
        SurgeryError: S208 for wrong arguments, S21x for dims that do not fit, S287 for what is known
            only after a step.

    """
    if primitive.parts:
        raise in_parts(primitive, e)
    if primitive.name in READERS:
        return READERS[primitive.name](e, names)
    positional = tuple(a for a in e.arguments if a.name is None)
    for argument in e.arguments:
        if argument.name is not None and argument.name != primitive.axis:
            raise error(
                "S208",
                f"`{primitive.name}` has no argument `{argument.name}`",
                argument.span,
                help=did_you_mean(argument.name, [primitive.axis]) if primitive.axis else None,
            )
    arguments = tensors(e, positional, names, primitive.arity)
    if primitive.stepping:
        _check_stepping(primitive, arguments, e, names)
    for position, range_ in primitive.numbers:
        if position >= len(arguments):
            continue
        known = arguments[position].number
        if known is None:
            problem = f"{primitive.name} takes a number known before the model runs"
            raise error("S212", problem, e.span)
        written = positional[position].value
        names.demand(range_.of(known, e.span, names.origin(written)))
    axis = _axis(primitive, arguments, e, names) if primitive.axis else None
    if axis == SITES:
        shape = arguments[0].shape
        return make(primitive.name, arguments, shape, (("axis", SITES),), e.span)
    shape = primitive.shape(names.shapes, arguments, e.span, -1 if axis is None else int(axis))
    if primitive.name == "linear" and len(arguments) == 3:
        x, weight, bias = arguments
        if len(bias.shape) != 1 or names.shapes.resolve(bias.shape[0]) != shape[-1]:
            # One number for all features, where the function itself needs one for each.
            product = make("linear", (x, weight), shape, span=e.span)
            return make("add", (product, bias), shape, span=e.span)
    attributes: tuple[tuple[str, Attribute], ...] = () if axis is None else (("axis", axis),)
    return make(primitive.name, arguments, shape, attributes, e.span)


def _check_stepping(
    primitive: Primitive, arguments: Arguments, e: syntax.Call, names: Names
) -> None:
    """`grad(A)` is there after a step alone, and of params alone."""
    if names.moment != "step":
        raise error(
            "S287",
            f"`{primitive.name}` is known only after a step of the optimizer",
            e.span,
            help="`after step { … }` is where it can be read",
        )
    if arguments[0].op != "param" or " " in arguments[0].name:
        raise error("S287", f"`{primitive.name}` is of a param", e.arguments[0].span)


def _axis(primitive: Primitive, arguments: Arguments, e: syntax.Call, names: Names) -> int | str:
    """The axis, counted from the end, that a dim is of the last argument that has it.

    After a step it may be that of the sites.
    """
    given = next((a.value for a in e.arguments if a.name == primitive.axis), None)
    if given is None or names.evaluate(given) != Dim.named(SITES):
        return axis_of(primitive, arguments, e, names)
    if names.moment == "step" and primitive.over_sites:
        return SITES
    raise error(
        "S287",
        f"`{primitive.name}` is not taken over sites"
        + ("" if names.moment == "step" else ": that is for what follows a step"),
        given.span,
        help=f"{', '.join(f'`{p.name}`' for p in PRIMITIVES.values() if p.over_sites)} are, "
        "in `after step { … }`",
    )
