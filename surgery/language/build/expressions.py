from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from surgery.language.build.base import NodeBuilder, Parts
from surgery.language.diagnostics import Label
from surgery.language.precedence import run_on
from surgery.language.source import Span
from surgery.language.syntax import (
    Argument,
    Binary,
    Call,
    Expression,
    Name,
    NamedDim,
    Node,
    Number,
    Star,
    Text,
    Unary,
)

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"', r"\\": "\\"}


LARGEST = 2**63
"""Whole numbers beyond this count nothing that there is."""


@dataclass(frozen=True, slots=True)
class Sequence(Node):
    """What stands in brackets, with the brackets in its span."""

    items: tuple[Any, ...]


def unquote(literal: str) -> str:
    """The text that a string literal stands for."""
    return re.sub(r"\\.", lambda escape: _ESCAPES[escape[0]], literal[1:-1])


class ExpressionBuilder(NodeBuilder):
    def number(self, parts: Parts) -> Number:
        text = str(parts[0])
        value = self.whole(text)
        if value is None:
            value = float(text)
        if value == inf or (isinstance(value, int) and value > LARGEST):
            self.reject("S112", "this number is too large", self.at(parts[0]))
        return Number(value, span=self.at(parts[0]))

    def whole(self, text: str) -> int | None:
        """The whole number that ``text`` writes, if it is one that Python reads."""
        return int(text) if text.isdigit() and len(text) < 4000 else None

    def text(self, parts: Parts) -> Text:
        return Text(unquote(parts[0]), span=self.at(parts[0]))

    def name(self, parts: Parts) -> Name:
        return Name(parts[0].value, span=self.at(parts[0]))

    def star(self, parts: Parts) -> Star:
        return Star(span=self.at(parts[0]))

    def named_dim(self, parts: Parts) -> NamedDim:
        name, _, size = parts
        span = self.over(parts)
        return NamedDim(name.value, size, span=span, name_span=self.at(name), depth=size.depth)

    def unary(self, parts: Parts) -> Unary:
        span = self.over(parts)
        return Unary(parts[0].value, parts[1], span=span, depth=self.below([parts[1]], span))

    def binary(self, parts: Parts) -> Binary:
        left, operator, right = parts
        span = self.over(parts)
        flat = isinstance(left, Binary) and run_on(left.operator, operator.value)
        depth = max(left.depth + (not flat), right.depth + 1)
        if depth > left.depth:
            self.deep(depth, span)
        return Binary(operator.value, left, right, span=span, depth=depth)

    def parenthesised(self, parts: Parts) -> Expression:
        return replace(parts[1], span=self.over(parts))

    def call(self, parts: Parts) -> Call:
        function, arguments = parts
        span = self.over(parts)
        return Call(
            function.value,
            arguments.items,
            span=span,
            depth=self.below(arguments.items, span),
            function_span=self.at(function),
        )

    def positional(self, parts: Parts) -> Argument:
        return Argument(None, parts[0], span=parts[0].span, depth=parts[0].depth)

    def keyword(self, parts: Parts) -> Argument:
        return Argument(parts[0].value, parts[2], span=self.over(parts), depth=parts[2].depth)

    def arguments(self, parts: Parts) -> Sequence:
        arguments = self.sequence(parts)
        named: dict[str, Span] = {}
        for argument in arguments.items:
            if argument.name is None:
                if named:
                    self.reject(
                        "S109",
                        "an argument without a name follows one that has a name",
                        argument.span,
                        Label(next(iter(named.values())), "the first one with a name"),
                        help="arguments without names come first",
                    )
                    break
            elif argument.name in named:
                self.reject(
                    "S109",
                    f"the argument `{argument.name}` is given twice",
                    argument.span,
                    Label(named[argument.name], "first given here"),
                )
            else:
                named[argument.name] = argument.span
        return arguments

    def dims(self, parts: Parts) -> Sequence:
        dims = self.sequence(parts)
        for dim in dims.items[1:]:
            if isinstance(dim, Star):
                self.reject(
                    "S121",
                    "`*` must come before the other dims",
                    dim.span,
                    help="`x[*, m]`: any number of leading dims, then `m`",
                )
        return dims

    def sequence(self, parts: Parts) -> Sequence:
        return Sequence(self.nodes(parts), span=self.over(parts))
