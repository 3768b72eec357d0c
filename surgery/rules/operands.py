"""Values taken as what an operation needs: a tensor, a number, or a condition."""

from __future__ import annotations

from surgery.language.diagnostics import error
from surgery.language.source import Span
from surgery.rules.conditions import Condition
from surgery.rules.dims import Dim
from surgery.rules.expression import (
    Expression,
    is_leading,
    number,
)
from surgery.rules.values import (
    Value,
    describe,
)


def tensor(value: Value, span: Span) -> Expression:
    """``value`` as a tensor; numbers become scalars.

    Raises:
        SurgeryError: S208 for anything else.

    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, Dim):
        if is_leading(value):
            raise error(
                "S208",
                "this dim changes from one forward pass to the next, so it is not a number",
                span,
            )
        return number(value, span)
    raise error("S208", f"expected a tensor or a number, and this is {describe(value)}", span)


def scalar(value: Value, span: Span) -> Dim:
    """``value`` as a number known from arguments and dims.

    Raises:
        SurgeryError: S208 for anything else.

    """
    if isinstance(value, Expression) and value.number is not None:
        return value.number
    if not isinstance(value, Dim):
        raise error("S208", f"expected a number, and this is {describe(value)}", span)
    return value


def truth(value: Value, span: Span) -> Condition:
    if not isinstance(value, Condition):
        raise error("S208", f"expected a condition, and this is {describe(value)}", span)
    return value
