"""What statements say to an optimizer and of the loss, resolved for one model: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.language import syntax
from surgery.language.diagnostics import error
from surgery.planning.spec import Spec
from surgery.rules.evaluate import evaluate
from surgery.rules.operands import scalar


@dataclass(frozen=True)
class Option:
    """One option of an optimizer, for parameters by the names that they have in the adapted model.

    With ``operator`` `*` it is that of the optimizer times ``value``, with `=` it is ``value``.
    """

    statement: int
    option: str
    operator: str
    value: float
    names: tuple[str, ...]
    place: str

    def __str__(self) -> str:
        return f"{self.option} {self.operator} {self.value:g}"


@dataclass(frozen=True)
class SitePenalty:
    """A `penalty` statement at one site, ``key``, which is one of ``sites`` that have it."""

    statement: int
    key: tuple[str, str]
    sites: int


def setting_value(setting: syntax.Setting, spec: Spec) -> float:
    """The number that a statement gives to an option.

    Raises:
        SurgeryError: S280 if it is none, or one that no optimizer takes.

    """
    known = scalar(evaluate(setting.value, spec.constants), setting.value.span).number
    if known is None or known < 0:
        what = "a schedule" if known is None else "negative"
        raise error(
            "S280",
            f"`{setting.option}` is one number, from 0 on, and this is {what}",
            setting.value.span,
            help="a learning rate over time is for the optimizer's own scheduler",
        )
    return float(known)
