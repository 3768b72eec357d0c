"""Which numbers an argument may be, derived from what a rule does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from surgery.language.diagnostics import Label, SurgeryError, error
from surgery.language.source import Span
from surgery.rules.conditions import Condition, Requirement
from surgery.rules.dims import Dim, Scalar


@dataclass(frozen=True)
class Range:
    """``words`` say of what is needed: "a size is …"."""

    words: str
    condition: Callable[[Dim], Condition]

    def of(self, value: Dim, span: Span, origins: tuple[Span, ...]) -> Requirement:
        """That ``value``, which stands at ``span``, is in this range."""
        return Requirement(self.condition(value), span, origins, self.words, value)


def _both(left: Condition, right: Condition) -> Condition:
    return Condition("and", (left, right))


def _from(low: int, value: Dim) -> Condition:
    return Condition("<=", (Dim.of(low), value))


def _whole(low: int, value: Dim) -> Condition:
    return _both(_from(low, value), Condition("==", (Dim.named("floor", value), value)))


SIZE = Range("a size is a whole number from 1", lambda value: _whole(1, value))
COUNT = Range("this is a whole number from 0", lambda value: _whole(0, value))
RATE = Range(
    "a rate of dropout is at least 0 and less than 1",
    lambda value: _both(_from(0, value), Condition("<", (value, Dim.of(1)))),
)
SPREAD = Range("how far values are drawn from 0 is no negative number", lambda v: _from(0, v))

OPTION = Range("an option of the optimizer is no negative number", lambda v: _from(0, v))

NUMBER = Range("this is a number", lambda _: Condition("and", ()))
"""Any that is known before the model runs."""

SPREADS = ("std", "bound", "gain")
"""The arguments of distributions that say how far apart values are."""


def unmet(requirement: Requirement, sizes: Mapping[str, Scalar] | None = None) -> SurgeryError:
    """The error that ``requirement`` does not hold: at these ``sizes``, or anywhere."""
    rule = requirement.span
    elsewhere = [o for o in requirement.origins if not rule.holds(o)]
    names = sorted(requirement.condition.names())
    values = ", ".join(f"{n} = {sizes[n]}" for n in names) if sizes else ""
    here = f" here ({values})" if values else ""
    if requirement.words is None:
        text = " ".join(rule.text.removeprefix("require").split())
        shown = requirement.condition.shown(sizes)
        message = f"the rule requires `{text}`, which is false{here if sizes else ' at every site'}"
        why, code = (f"{shown} is false" if shown else ""), "S404"
        help = (
            "change the argument, or exclude these layers with `where` or `except`"
            if sizes
            else None
        )
    else:
        value = (
            requirement.value
            if sizes is None or not requirement.value
            else requirement.value.value(sizes)
        )
        message = f"{requirement.words}, and this is {value}{here}"
        why, code, help = ("used here" if elsewhere else ""), "S240", None
    return error(code, message, *elsewhere, Label(rule, why), help=help)
