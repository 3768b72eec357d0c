"""The names that a spec's own expressions know."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgery.language import syntax
from surgery.language.diagnostics import error
from surgery.language.source import Span
from surgery.rules.conditions import Requirement
from surgery.rules.evaluate import evaluate
from surgery.rules.expression import (
    Expression,
)
from surgery.rules.library import Scope
from surgery.rules.ranges import unmet
from surgery.rules.shapes import Shapes
from surgery.rules.site_facts import FACTS
from surgery.rules.values import (
    Closure,
    Opaque,
    Value,
)


@dataclass
class Constants:
    """The names a spec's own expressions know: its `let`s and the library."""

    scope: Scope
    values: dict[str, Value]
    shapes: Shapes
    moment: str = "forward"
    written: dict[str, Span] = field(default_factory=dict[str, Span])
    """Where the values of `let`s stand."""
    at_sites: bool = False
    """Whether what is said may differ from site to site, as the arguments of a method may."""

    def lookup(self, name: str, span: Span) -> Value | None:
        return self.values.get(name, FACTS.get(name) if self.at_sites else None)

    def known(self) -> list[str]:
        return [*self.values, *(FACTS if self.at_sites else ())]

    def origin(self, e: syntax.Expression) -> tuple[Span, ...]:
        lets = dict.fromkeys(self.written[n] for n in syntax.mentioned(e) & self.written.keys())
        return (e.span, *tuple(lets)[:2])

    def demand(self, requirement: Requirement) -> None:
        if requirement.condition.known is False:
            raise unmet(requirement)

    def like(self) -> Expression | None:
        return None

    def call_block(self, block: Closure | Opaque, argument: Expression, span: Span) -> Expression:
        raise error("S208", "a block is called inside a method", span)

    def evaluate(self, e: syntax.Expression) -> Value:
        return evaluate(e, self)
