"""Inputs that are no features yet: a convolution's patches, an embedding's ids.

Such an input only ever meets `linear`. What a rule does to it before is moved into the weight:
linear(v·x, A) = linear(x, A·v), and linear(x + v, A) = linear(x, A) + A·v.
"""

from __future__ import annotations

from surgery.language.diagnostics import error
from surgery.rules.expression import Expression
from surgery.rules.simplify import make


def push_input(e: Expression) -> Expression:
    """``linear(f(x), A, b)`` with ``f`` moved into the weight by one step.

    Raises:
        SurgeryError: S412 if it cannot be moved there.

    """
    x, weight, *rest = e.arguments
    match x.op:
        case "multiply":
            factor, inner = sorted(x.arguments, key=lambda a: a.varies)
            if not factor.varies:
                scaled = make("multiply", (weight, factor), weight.shape)
                return make("linear", (inner, scaled, *rest), e.shape, span=e.span)
        case "divide" if not x.arguments[1].varies:
            inner, factor = x.arguments
            scaled = make("divide", (weight, factor), weight.shape)
            return make("linear", (inner, scaled, *rest), e.shape, span=e.span)
        case "negate":
            turned = make("negate", (weight,), weight.shape)
            return make("linear", (x.arguments[0], turned, *rest), e.shape, span=e.span)
        case "add" | "subtract":
            left, right = (
                make("linear", (a, weight), e.shape if a.varies else weight.shape[:1], span=e.span)
                for a in x.arguments
            )
            total = make(x.op, (left, right), e.shape, span=e.span)
            return make("add", (total, *rest), e.shape) if rest else total
        case "detach" | "identity":
            return make("linear", (x.arguments[0], weight, *rest), e.shape, span=e.span)
        case _:
            pass
    raise error(
        "S412",
        f"`{x.op}` of the input has no meaning on patches or ids; only `linear` sees them",
        x.span or e.span,
    )
