from __future__ import annotations

from typing import Any, NamedTuple

from surgery.language.build.base import Parts
from surgery.language.build.expressions import ExpressionBuilder
from surgery.language.diagnostics import Label
from surgery.language.glob import GlobError, compile_glob
from surgery.language.source import Span
from surgery.language.syntax import (
    All,
    Class,
    Group,
    Index,
    Node,
    Path,
    Role,
    Selector,
    Slice,
    Sliced,
    Union,
)

_FIELDS = {"of": "of", "in": "within", "where": "where", "except": "exceptions", "expect": "expect"}
_ORDER = "the clauses come in this order: `of`, `in`, `where`, `except`, `expect`"


class Bound(NamedTuple):
    """A whole number in a subscript, or a share of all that there are."""

    value: int | float
    span: Span


class SelectorBuilder(ExpressionBuilder):
    def selector(self, parts: Parts) -> Selector:
        union, *clauses = parts
        fields: dict[str, Any] = {}
        words: dict[str, Span] = {}
        for word, value, _ in clauses:
            field = _FIELDS[word.value]
            if field in fields:
                self.reject(
                    "S106",
                    f"a selector has at most one `{word}`",
                    self.at(word),
                    Label(words[field], "the first one"),
                    help="join what they say: `|` joins selectors, `and` joins tests",
                )
            elif later := [w for f, w in words.items() if _position(f) > _position(field)]:
                self.reject(
                    "S106",
                    f"`{word}` belongs before `{later[0].text}`",
                    self.at(word),
                    Label(later[0], "comes too early"),
                    help=_ORDER,
                )
            fields.setdefault(field, value)
            words.setdefault(field, self.at(word))
        self._named(fields.get("of"))
        end = clauses[-1][2] if clauses else union.span.end
        inner = (union, *(f for f in fields.values() if isinstance(f, Node)))
        depth = max(node.depth for node in inner)
        span = Span(self.source, union.span.start, end)
        return Selector(union, **fields, span=span, depth=depth)

    def _named(self, of: Union | None) -> None:
        """Methods, whose params `of` speaks of, go by their bare names."""
        for part in of.parts if of else ():
            if not isinstance(part, Role | Class):
                self.reject(
                    "S281",
                    "`of` takes the names of methods",
                    part.span,
                    help="a method goes by its own name, or by that which `as` gives: `A of lora`",
                )

    def clause(self, parts: Parts) -> tuple[Any, Any, int]:
        """Its word, what it says, and where it ends."""
        word, value = parts
        if word.value != "expect":
            return word, value, value.span.end
        count = self.whole(value)
        if count is None:
            self.reject("S112", "`expect` takes a whole number", self.at(value))
        return word, count or 0, value.end_pos

    def union(self, parts: Parts) -> Union:
        depth = max(part.depth for part in parts[::2])
        return Union(tuple(parts[::2]), span=self.over(parts), depth=depth)

    def sliced(self, parts: Parts) -> Sliced:
        return Sliced(parts[0], parts[2], span=self.over(parts), depth=parts[0].depth)

    def path(self, parts: Parts) -> Path:
        token = parts[0]
        pattern = token.value[1:-1]
        try:
            compile_glob(pattern)
        except GlobError as problem:
            inside = token.start_pos + 1
            span = Span(self.source, inside + problem.start, inside + problem.end)
            self.reject("S111", str(problem), span)
        return Path(pattern, span=self.at(token))

    def role(self, parts: Parts) -> Role | Class:
        name = "".join(parts)
        span = self.over(parts)
        if len(parts) == 1 and name[0].isupper():
            return Class(name, span=span)
        if any(word[0].isupper() for word in parts[::2]):
            known = parts[-1][0].isupper()
            self.reject(
                "S117",
                f"`{name}` is neither a role nor a class",
                span,
                help=f"a class goes by its bare name: `{parts[-1]}`"
                if known
                else "roles are lowercase, and paths are written between backticks",
            )
        return Role(name, span=span)

    def everything(self, parts: Parts) -> All:
        return All(span=self.at(parts[0]))

    def group(self, parts: Parts) -> Group:
        span = self.over(parts)
        return Group(parts[1], span=span, depth=self.below([parts[1]], span))

    def index(self, parts: Parts) -> Index:
        value, span = parts[0]
        if isinstance(value, float):
            self.reject("S112", "a place is a whole number; a share is a bound: `[0.5:]`", span)
        return Index(int(value), span=span)

    def slice(self, parts: Parts) -> Slice:
        bounds: list[int | float | None] = [None, None, None]
        place = 0
        for part in parts:
            if isinstance(part, Bound):
                bounds[place] = part.value
            else:
                place += 1
        start, stop, step = bounds
        if step == 0 or isinstance(step, float):
            what = "not zero" if step == 0 else "a whole number"
            self.reject("S112", f"the step of a slice is {what}", parts[-1].span)
            step = None
        return Slice(start, stop, step, span=self._edge(parts[0]).to(self._edge(parts[-1])))

    def _edge(self, part: Any) -> Span:
        return part.span if isinstance(part, Bound) else self.at(part)

    def integer(self, parts: Parts) -> Bound:
        span = self.over(parts)
        value = self.whole(parts[-1])
        if value is None:
            value = float(parts[-1])
            if not value < 1:
                self.reject("S112", "a place is a whole number, and a share of all below 1", span)
        return Bound(value * (-1 if len(parts) == 2 else 1), span)


def _position(field: str) -> int:
    return list(_FIELDS.values()).index(field)
