"""Expressions and selectors back to text, with no more parentheses than they need."""

from __future__ import annotations

import re

from surgery.language.layout import Doc, Line, Nest, Unbroken, bracketed, joined
from surgery.language.precedence import LEVEL, MINUS, run_on
from surgery.language.syntax import (
    All,
    Application,
    Argument,
    Binary,
    Call,
    Class,
    Expression,
    Group,
    Index,
    Name,
    NamedDim,
    Number,
    Path,
    Role,
    Selector,
    Setting,
    Slice,
    Sliced,
    Star,
    Text,
    Unary,
    Union,
)

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def quote(text: str) -> str:
    """``text`` as a string literal."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return '"' + escaped.replace("\n", r"\n").replace("\t", r"\t") + '"'


def expression(node: Expression, level: int = 0) -> Doc:
    """``node`` as an operand that may bind as loosely as ``level``."""
    doc, own = _expression(node)
    return ("(", doc, ")") if own < level else doc


def _expression(node: Expression) -> tuple[Doc, int]:
    tight = MINUS + 1
    match node:
        case Number():
            return _number(node), tight
        case Text():
            return quote(node.value), tight
        case Name():
            return node.name, tight
        case NamedDim():
            return (f"{node.name} = ", expression(node.size)), 0
        case Star():
            return "*", tight
        case Call():
            return (node.function, arguments(node.arguments)), tight
        case Unary(operator="not"):
            own = LEVEL["not"]
            return ("not ", expression(node.operand, own)), own
        case Unary():
            return ("-", expression(node.operand, MINUS)), MINUS
        case Binary():
            return _chain(node), LEVEL[node.operator]


def _chain(node: Binary) -> Doc:
    """Operators of one level, which group to the left, as one run that breaks as one."""
    level = LEVEL[node.operator]
    run: list[Doc] = []
    left: Expression = node
    while isinstance(left, Binary) and (left is node or run_on(left.operator, node.operator)):
        run.append((Line(), f"{left.operator} ", expression(left.right, level + 1)))
        left = left.left
    return Unbroken((expression(left, level + 1), Nest(tuple(reversed(run)))))


def _number(node: Number) -> str:
    # `5e-4` stays `5e-4` if that is how it was written.
    written = node.span.text
    same = _NUMBER.fullmatch(written) and float(written) == node.value
    same = same and written.isdigit() == isinstance(node.value, int)
    return written if same else repr(node.value)


def arguments(given: tuple[Argument, ...]) -> Doc:
    return bracketed("(", [_argument(argument) for argument in given], ")")


def _argument(node: Argument) -> Doc:
    value = expression(node.value)
    return value if node.name is None else (f"{node.name} = ", value)


def dims(given: tuple[Expression, ...]) -> Doc:
    parts: list[Doc] = [expression(dim) for dim in given]
    return ("[", joined(parts, ", "), "]")


def settings(given: tuple[Setting, ...]) -> Doc:
    """What `with` says to an optimizer."""
    docs: list[Doc] = [(f"{s.option} {s.operator} ", expression(s.value)) for s in given]
    return joined(docs, ", ")


def selector(node: Selector) -> Doc:
    """The union on the first line and, if need be, each clause on one of its own."""
    clauses: list[Doc] = []
    if node.of is not None:
        clauses += [Line(), "of ", union(node.of)]
    if node.within is not None:
        clauses += [Line(), "in ", union(node.within)]
    if node.where is not None:
        clauses += [Line(), "where ", expression(node.where)]
    if node.exceptions is not None:
        clauses += [Line(), "except ", union(node.exceptions)]
    if node.expect is not None:
        clauses += [Line(), f"expect {node.expect}"]
    return Unbroken((union(node.union), Nest(tuple(clauses))))


def union(node: Union) -> Doc:
    first, *rest = [_part(part) for part in node.parts]
    return Unbroken((first, Nest(tuple((Line(""), "|", part) for part in rest))))


def _part(node: Path | Role | Class | All | Sliced | Group) -> Doc:
    match node:
        case Path():
            return f"`{node.pattern}`"
        case Role() | Class():
            return node.name
        case All():
            return "all"
        case Sliced():
            return (_part(node.item), f"[{_subscript(node.subscript)}]")
        case Group():
            return ("(", selector(node.selector), ")")


def _subscript(node: Slice | Index) -> str:
    if isinstance(node, Index):
        return str(node.index)
    bounds = ["" if bound is None else str(bound) for bound in (node.start, node.stop)]
    if node.step is not None:
        bounds.append(str(node.step))
    return ":".join(bounds)


def application(node: Application) -> Doc:
    """A chain; a single method is preceded by `apply`."""
    return ("apply " if node.operand is None else "", _application(node))


def _application(node: Application) -> Doc:
    given = arguments(node.arguments) if node.arguments else ""
    operand: Doc = "" if node.operand is None else (" ", _application(node.operand))
    return (node.name, given, operand)
