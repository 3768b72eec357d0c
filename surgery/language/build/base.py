from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from surgery.language.diagnostics import Diagnostic, Label
from surgery.language.source import SourceText, Span
from surgery.language.syntax import Node

DEEPEST = 64
"""So deep may expressions, verbs and groups stand in one another, that each reader can follow."""

Parts = list[Any]
"""What a rule is made of: nodes, Lark's tokens, and what the helper rules return."""


class NodeBuilder(threading.local):
    """Builds nodes of ``source``; what it objects to is in ``problems``. One state a thread."""

    source = SourceText("", "")

    def __init__(self) -> None:
        self.problems: list[Diagnostic] = []

    def begin(self, source: SourceText) -> None:
        self.source = source
        self.problems = []

    def over(self, parts: Parts) -> Span:
        """The span of all of ``parts``."""
        first, last = parts[0], parts[-1]
        start: int = first.span.start if isinstance(first, Node) else first.start_pos
        end: int = last.span.end if isinstance(last, Node) else last.end_pos
        return Span(self.source, start, end)

    def below(self, nodes: Iterable[Node], span: Span) -> int:
        """The depth of what holds ``nodes``."""
        depth = 1 + max((node.depth for node in nodes), default=-1)
        return self.deep(depth, span)

    def deep(self, depth: int, span: Span) -> int:
        """``depth``, which is an error from one on."""
        if depth == DEEPEST + 1:
            self.reject("S123", f"this nests more than {DEEPEST} deep", span)
        return depth

    def nodes(self, parts: Parts) -> tuple[Any, ...]:
        return tuple(part for part in parts if isinstance(part, Node))

    def at(self, token: Any) -> Span:
        return Span(self.source, token.start_pos, token.end_pos)

    def reject(
        self, code: str, message: str, *labels: Span | Label, help: str | None = None
    ) -> None:
        marks = tuple(Label(x) if isinstance(x, Span) else x for x in labels)
        self.problems.append(Diagnostic(code, message, marks, help))
