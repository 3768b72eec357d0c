"""What evaluating an expression asks of the names around it."""

from __future__ import annotations

from typing import Protocol

from surgery.language import syntax
from surgery.language.source import Span
from surgery.rules.conditions import Requirement
from surgery.rules.expression import Expression
from surgery.rules.library import Scope
from surgery.rules.shapes import Shapes
from surgery.rules.values import Closure, Opaque, Value


class Names(Protocol):
    """What a body can name; ``lookup`` gives None for a name it does not know."""

    scope: Scope
    shapes: Shapes
    moment: str
    """What is evaluated: the `forward`, a `penalty`, or what follows a `step` of the optimizer."""

    def lookup(self, name: str, span: Span) -> Value | None: ...
    def evaluate(self, e: syntax.Expression) -> Value: ...
    def known(self) -> list[str]: ...
    def like(self) -> Expression | None: ...
    def origin(self, e: syntax.Expression) -> tuple[Span, ...]: ...
    def demand(self, requirement: Requirement) -> None: ...
    def call_block(
        self, block: Closure | Opaque, argument: Expression, span: Span
    ) -> Expression: ...
