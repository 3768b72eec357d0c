"""What a rule says of training: of the optimizer, of the loss, and of what follows each step.

None of it is part of the forward: a rule leaves it behind as plain data, and `surgery.param_groups`,
`surgery.penalty` and `surgery.step` read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from surgery.language.source import Span
from surgery.rules.conditions import Condition
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression

CLOCK = "clock"
"""The state in which the steps of a method are counted, [steps, seed]; its sites share it."""


@dataclass(frozen=True)
class Tuning:
    """An option of the optimizer for params of a rule, by their full names."""

    params: tuple[str, ...]
    option: str
    operator: str
    value: Dim
    span: Span


@dataclass(frozen=True)
class PenaltyTerm:
    """One number for each site, to be added to the loss."""

    value: Expression
    span: Span


@dataclass(frozen=True)
class Update:
    """A param or a state, or a name for what follows, that takes another value."""

    target: str
    value: Expression
    span: Span


@dataclass(frozen=True)
class AfterStep:
    """What follows a step of the optimizer, where ``where`` holds then."""

    where: Condition | None
    updates: tuple[Update, ...]


Trained = Tuning | PenaltyTerm | AfterStep


def read_in_training(said: Iterable[Trained]) -> Iterator[Expression]:
    """All values that are computed beside the forward."""
    for item in said:
        if isinstance(item, PenaltyTerm):
            yield item.value
        elif isinstance(item, AfterStep):
            yield from (update.value for update in item.updates)
