"""Expressions of the language → values: numbers, tensors, functions, methods and blocks."""

from __future__ import annotations

from surgery.language import syntax
from surgery.language.diagnostics import Label, did_you_mean, error
from surgery.language.source import Span
from surgery.rules.binding import bind
from surgery.rules.calling import call_primitive, tensors
from surgery.rules.changes import difference, together
from surgery.rules.conditions import Condition
from surgery.rules.dims import ARITY, FUNCTIONS, SCHEDULES, STEP, Dim
from surgery.rules.expression import (
    COMPARISONS,
    OPERATORS,
    STAR,
    Expression,
)
from surgery.rules.limits import bounded
from surgery.rules.names import Names
from surgery.rules.operands import scalar, tensor, truth
from surgery.rules.primitive import Primitive
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import Shapes
from surgery.rules.simplify import make
from surgery.rules.values import (
    Closure,
    HostModule,
    Opaque,
    Value,
    describe,
)

_MOST_TERMS = 400


def evaluate(e: syntax.Expression, names: Names) -> Value:
    """The value of ``e``.

    Raises:
        SurgeryError: S207 unknown name, S208 wrong arguments, S21x dims that do not fit, S242 or
            S243 for what is too large.

    """
    return bounded(_evaluate(e, names), e.span)


def _evaluate(e: syntax.Expression, names: Names) -> Value:
    match e:
        case syntax.Number():
            return Dim.of(e.value)
        case syntax.Text():
            return e.value
        case syntax.Star():
            return STAR
        case syntax.NamedDim():
            return evaluate(e.size, names)
        case syntax.Name():
            return _name(e, names)
        case syntax.Unary():
            return _unary(e, names)
        case syntax.Binary():
            first, run = syntax.spine(e)
            value = evaluate(first, names)
            for operation in run:
                value = bounded(_binary(operation, value, names), operation.span)
            return value
        case syntax.Call():
            return _call(e, names)


def _name(e: syntax.Name, names: Names) -> Value:
    value = names.lookup(e.name, e.span)
    if value is not None:
        return value
    if e.name in PRIMITIVES:
        return PRIMITIVES[e.name]
    definition = names.scope.find(e.name)
    if definition is not None:
        return bind(definition, (), e.span, names)
    known = names.known()
    raise error(
        "S207",
        f"nothing here is named `{e.name}`",
        e.span,
        help=did_you_mean(e.name, [*known, *PRIMITIVES, *names.scope.names()])
        or (f"known are {', '.join(known)}" if known else None),
    )


def _unary(e: syntax.Unary, names: Names) -> Value:
    value = evaluate(e.operand, names)
    if e.operator == "not":
        return Condition("not", (truth(value, e.operand.span),))
    if isinstance(value, Dim):
        return -value
    operand = tensor(value, e.operand.span)
    return make("negate", (operand,), operand.shape, span=e.span)


def condition(e: syntax.Expression, names: Names) -> Condition:
    """``e`` as a condition on dims and numbers.

    Raises:
        SurgeryError: S208 if it is something else.

    """
    return truth(evaluate(e, names), e.span)


def _binary(e: syntax.Binary, left: Value, names: Names) -> Value:
    right = evaluate(e.right, names)
    if e.operator in ("and", "or"):
        first = truth(left, e.left.span)
        parts = first.parts if first.operator == e.operator else (first,)
        return Condition(e.operator, (*parts, truth(right, e.right.span)))
    tensors = any(isinstance(side, Expression) and side.number is None for side in (left, right))
    if e.operator in COMPARISONS and not tensors:
        sides = scalar(left, e.left.span), scalar(right, e.right.span)
        return Condition(e.operator, sides)
    if isinstance(left, Dim) and isinstance(right, Dim) and e.operator != "@":
        return _arithmetic(e, left, right)
    if e.operator == "%":
        raise error("S208", "`%` is for numbers and dims", e.span)
    a, b = tensor(left, e.left.span), tensor(right, e.right.span)
    return combine(e.operator, a, b, names.shapes, e.span)


def combine(
    sign: str, left: Expression, right: Expression, shapes: Shapes, span: Span
) -> Expression:
    """``left sign right``, of two tensors."""
    op = OPERATORS[sign]
    shape = PRIMITIVES[op].shape(shapes, (left, right), span, -1)
    match sign:
        case "+":
            return together(left, right, shape, span)
        case "-":
            return difference(left, right, shape, span)
        case _:
            return make(op, (left, right), shape, span=span)


def _arithmetic(e: syntax.Binary, left: Dim, right: Dim) -> Dim:
    if e.operator in "/%" and not right.terms:
        raise error("S213", "division by zero", e.span, Label(e.right.span, "is 0"))
    if len(left.terms) * len(right.terms) > _MOST_TERMS:
        problem = "this becomes too large to be worked out: products of long sums"
        raise error("S242", problem, e.span)
    match e.operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case _:
            return left % right


def _call(e: syntax.Call, names: Names) -> Value:
    local = names.lookup(e.function, e.function_span)
    if isinstance(local, Primitive):
        return call_primitive(local, e, names)
    if isinstance(local, Closure | Opaque):
        (argument,) = tensors(e, e.arguments, names, (1, 1))
        return names.call_block(local, argument, e.span)
    if isinstance(local, HostModule):
        (argument,) = tensors(e, e.arguments, names, (1, 1))
        if not local.present:
            return argument
        return Expression("host", (argument,), (("name", local.name),), argument.shape, e.span)
    definition = names.scope.find(e.function)
    if definition is not None:
        return bind(definition, e.arguments, e.span, names)
    if e.function in FUNCTIONS and not any(a.name for a in e.arguments):
        values = [evaluate(a.value, names) for a in e.arguments]
        numbers = [v for v in values if isinstance(v, Dim)]
        if len(numbers) == len(values) > 0:
            return _dim_function(e, numbers)
    if e.function in PRIMITIVES:
        return call_primitive(PRIMITIVES[e.function], e, names)
    if local is not None:
        raise error(
            "S208",
            f"`{e.function}` is {describe(local)}, and cannot be called",
            e.function_span,
            *names.origin(syntax.Name(e.function, span=e.function_span)),
        )
    if e.function in FUNCTIONS:
        raise error(
            "S208",
            f"`{e.function}` takes numbers and dims, by position",
            e.span,
            help="of tensors there are `clamp`, and `max(x, over = d)`",
        )
    raise error(
        "S207",
        f"no function or block is named `{e.function}`",
        e.function_span,
        help=did_you_mean(
            e.function, [*PRIMITIVES, *FUNCTIONS, *names.known(), *names.scope.names()]
        ),
    )


def _dim_function(e: syntax.Call, numbers: list[Dim]) -> Dim:
    arity = ARITY.get(e.function)
    if len(numbers) < 2 if arity is None else len(numbers) != arity:
        wanted = "two or more numbers" if arity is None else f"{arity} number{'s' * (arity > 1)}"
        raise error("S208", f"`{e.function}` takes {wanted}, not {len(numbers)}", e.span)
    if e.function in SCHEDULES:
        numbers = [*numbers, Dim.named(STEP)]
    try:
        return Dim.named(e.function, *numbers)
    except (ArithmeticError, ValueError) as problem:
        raise error("S208", f"`{e.function}` cannot take these: {problem}", e.span) from None
