"""Going on after a mistake, so that one pass finds them all and each is told once.

A text that fails to parse is read again, item by item: a mistake spoils only its own item or, in
the body of a definition, its own step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from surgery.language.checks import check
from surgery.language.diagnostics import MOST, Diagnostic, Label, first_of
from surgery.language.explain import explain
from surgery.language.explain_selector import BEHIND, selects
from surgery.language.failure import Failure
from surgery.language.lalr import END, RefusedError, Stepper, grammar, make_token
from surgery.language.scan import POISON, scan
from surgery.language.source import SourceText, Span
from surgery.language.syntax import Item, Node
from surgery.language.words import ITEMS, STEPS

if TYPE_CHECKING:
    from lark import Token

_NEVER_AFTER_AN_OPENER = {"EQUAL", "COMMA", "RPAR", "RSQB", "QMARK", "DOT", "TILDE", "ASSIGN"}


def read(source: SourceText, *lead: Token) -> tuple[list[Item], list[Diagnostic]]:
    """The sound items of ``source``, as if ``lead`` stood before it, and all that is wrong.

    The diagnostics come in the order of the text.
    """
    grammar().builder.begin(source)
    problems: list[Diagnostic] = []
    end = make_token(END, "", len(source.text.rstrip()))
    items: list[Item] = []
    for tokens, after in _chunks(source, chain(lead, scan(source, problems), [end])):
        chunk = _Chunk(source, tokens, after, problems)
        chunk.parse()
        items += chunk.items
        if len(problems) >= MOST:
            return items, _broken_off(problems, chunk.reached)
    problems += grammar().builder.problems
    spans = [label.span for problem in problems for label in problem.labels[:1]]
    whole = [item for item in items if not any(_inside(item, span.start) for span in spans)]
    problems += check(whole)
    return items, first_of(_in_order(problems))


def _broken_off(problems: list[Diagnostic], last: Span) -> list[Diagnostic]:
    """What is told of a text so broken that the rest of it is not read."""
    told = _in_order(problems)[:MOST]
    message = f"with {MOST} errors before it, the rest is not read"
    return [*told, Diagnostic("S124", message, (Label(last, "up to here"),))]


def _in_order(problems: list[Diagnostic]) -> list[Diagnostic]:
    return sorted(problems, key=lambda d: d.labels[0].span.start)


def _inside(node: Node, offset: int) -> bool:
    return node.span.start <= offset < node.span.end


def _chunks(source: SourceText, tokens: Iterable[Token]) -> Iterator[tuple[list[Token], Token]]:
    """The tokens of each item, and the one behind them, told from the words alone."""
    chunk: list[Token] = []
    depth = 0
    for token, following in pairwise(chain(tokens, [make_token(END, "", 0)])):
        if token.type == END or (token.type == "SEMICOLON" and depth <= 0):
            if chunk:
                yield chunk, token
            chunk, depth = [], 0
            continue
        if token.type in ("LBRACE", "RBRACE"):
            depth += 1 if token.type == "LBRACE" else -1
        elif (
            chunk
            and _opens_item(chunk[-1].type, token.type, following.type, depth)
            and not _is_behind(source, chunk, token, following)
        ):
            yield chunk, token
            chunk, depth = [], 0
        chunk.append(token)


def _is_behind(source: SourceText, chunk: list[Token], word: Token, following: Token) -> bool:
    """Whether ``word`` is a `freeze` or `train` behind its selector: `q train`, `on q train`."""
    if word.type not in BEHIND or following.type not in {END, "SEMICOLON", *ITEMS}:
        return False
    start, end = chunk[0].start_pos or 0, word.start_pos or 0
    return not source.line_ends(start, end) and selects([token.type for token in chunk])


def _opens_item(before: str, kind: str, after: str, depth: int) -> bool:
    if kind not in ITEMS or (kind in STEPS and depth > 0):
        return False
    # `f: block` is a kind of parameter, and `use = 3` or `let train` a reserved word misused.
    named = before in {"LET", "METHOD", "AS", "PARAM"} or (before == "BLOCK" and after == "LPAR")
    return not named and before != "COLON" and after not in _NEVER_AFTER_AN_OPENER


class _Chunk:
    """One item, or what should have been one; ``after`` is the token that follows it."""

    def __init__(
        self, source: SourceText, tokens: list[Token], after: Token, problems: list[Diagnostic]
    ):
        self.source = source
        self.tokens = tokens
        self.kinds = [token.type for token in tokens]
        self.after = after
        self.problems = problems
        self.reached = Span(source, 0, 0)
        self.items: list[Item] = []
        self.opened: list[Token] = []

    def parse(self) -> None:
        stepper, step = grammar().stepper(), None
        place = 0
        while place <= len(self.tokens):
            opens = self._in_body() and place < len(self.tokens) and self._opens_step(place)
            before = stepper.copy() if opens else None
            try:
                self._feed(stepper, place)
            except RefusedError:
                self._report(place, step)
                if step is None or place == len(self.tokens) or len(self.problems) >= MOST:
                    return
                stepper, place = step[0].copy(), self._next_step(place, step[1])
                del self.opened[1:]
                continue
            if self._in_body():
                if before and before.reach(["MATCH"]):
                    step = before, place
                elif self.tokens[place].type in {"LBRACE", "SEMICOLON"}:
                    step = stepper.copy(), place + 1
            elif not self.opened:
                step = None
            place += 1

    def _feed(self, stepper: Stepper, place: int) -> None:
        if place == len(self.tokens):
            self.items = stepper.feed(make_token(END, "", self.after.start_pos or 0))
            return
        token = self.tokens[place]
        stepper.feed(token)
        if token.type in {"LPAR", "LSQB", "LBRACE"}:
            self.opened.append(token)
        elif token.type in {"RPAR", "RSQB", "RBRACE"}:
            self.opened.pop()

    def _in_body(self) -> bool:
        return [token.type for token in self.opened] == ["LBRACE"]

    def _opens_step(self, place: int) -> bool:
        token = self.tokens[place]
        if token.type in STEPS:
            return True
        assigns = {"EQUAL", "ASSIGN"}
        after = self.tokens[place + 1].type if place + 1 < len(self.tokens) else END
        return token.type == "NAME" and after in assigns

    def _next_step(self, place: int, start: int) -> int:
        """Where to go on after the step at ``start`` failed at ``place``."""
        if place - 1 > start and self._opens_step(place - 1):
            place -= 1  # `param A[r] ~` and then `y += 1`: what is refused is the sign of a step
        place = max(place, start + 1)
        end = place
        while end < len(self.tokens) and not self._surely_ends_step(end):
            end += 1
        turns = [_turn(kind) for kind in self.kinds[start + 1 : end]]
        # Brackets that are never closed count as closed here, where the step broke off.
        depth = sum(turns[: place - start - 1]) - max(0, sum(turns))
        while place < end and not (depth <= 0 and self._opens_step(place)):
            depth += _turn(self.kinds[place])
            place += 1
        return place

    def _surely_ends_step(self, place: int) -> bool:
        kind = self.tokens[place].type
        return kind in STEPS or kind in {"SEMICOLON", "RBRACE"}

    def _report(self, place: int, step: tuple[Stepper, int] | None) -> None:
        token = self.tokens[place] if place < len(self.tokens) else self.after
        offset = token.start_pos or 0
        self.reached = Span(self.source, offset, offset + len(token))
        if token.type == POISON:
            return
        origin, start = step or (grammar().stepper(), 0)
        failure = Failure(
            self.source, self.tokens, self.kinds, place, self.after, origin, start, self.opened
        )
        self.problems.append(explain(failure))


def _turn(kind: str) -> int:
    return {"LPAR": 1, "LSQB": 1, "RPAR": -1, "RSQB": -1}.get(kind, 0)
