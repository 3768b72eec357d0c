"""The layout of methods and blocks: what their bodies begin with stands in columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from surgery.language.layout import STEP, Doc, bracketed, flat, layout
from surgery.language.placement import Piece, body_start, finish, place, written
from surgery.language.source import SourceText
from surgery.language.syntax import (
    After,
    Apply,
    Assign,
    Block,
    Charge,
    Comment,
    Draw,
    Let,
    Match,
    Method,
    Operand,
    Param,
    Parameter,
    Require,
    Return,
    Step,
    Tune,
    Unpack,
)
from surgery.language.unparse import arguments, dims, expression, quote, settings

_WIDEST = 32
_COLUMN: dict[type[Step], int] = {Match: 5, Param: 5, Apply: 5, Require: 7, Let: 3, Unpack: 3}
"""How wide the words are with which steps begin that stand in columns."""


def definition(node: Method | Block, comments: Sequence[Comment]) -> str:
    """The text of ``node`` with those of ``comments`` that stand in its body."""
    header, inside = _opened(node, layout(_header(node)), comments)
    doc = [] if node.doc is None else [" " * STEP + quote(line) for line in node.doc.split("\n")]
    body = _body(node.body, inside, node.span.source, STEP)
    return "\n".join([header, *doc, *body, "}"])


def _opened(
    node: Method | Block | After, header: str, comments: Sequence[Comment]
) -> tuple[str, Sequence[Comment]]:
    """The line that opens a body, with the comment on it, and the comments in the body."""
    source, start = node.span.source, body_start(node)
    first, last = (bisect_left(comments, o, key=_offset) for o in (start, node.span.end))
    inside = [*comments[first:last]]
    if inside and not source.text[start : inside[0].offset].strip(" \t"):
        header += f"  {written(inside.pop(0))}"
    return header, inside


def _body(
    steps: Sequence[Step], comments: Sequence[Comment], source: SourceText, by: int
) -> list[str]:
    """The lines of ``steps``, indented ``by`` so many blanks."""
    pieces = place(steps, comments, source)
    column = max((_COLUMN.get(type(step), 0) for step in steps), default=0)
    lines: list[str] = []
    for piece, width in zip(pieces, _param_widths(pieces), strict=True):
        if isinstance(piece.node, After):
            own = comments if piece.node.span.source is source else ()
            head, inside = _opened(piece.node, layout(_after(piece.node), by), own)
            inner = _body(piece.node.body, inside, source, by + STEP)
            text = "\n".join([head, *inner, " " * by + "}"])
        else:
            text = layout(_step(piece.node, column, width), by) if piece.node else ""
        lines += finish(piece, text, " " * by)
    return lines


def _after(node: After) -> Doc:
    test: Doc = "" if node.where is None else (" where ", expression(node.where))
    return (f"after {node.event}", test, " {")


def _offset(comment: Comment) -> int:
    return comment.offset


def _header(node: Method | Block) -> Doc:
    word = "block" if isinstance(node, Block) else "method"
    given = bracketed("(", [_parameter(parameter) for parameter in node.parameters], ")")
    of: Doc = (" of ", _operand(node.input)) if isinstance(node, Block) else ""
    return (f"{word} {node.name}", given, of, " {")


def _parameter(node: Parameter) -> Doc:
    kind = "" if node.kind == "value" else f": {node.kind}"
    default: Doc = "" if node.default is None else (" = ", expression(node.default))
    return (node.name, kind, default)


def _operand(node: Operand) -> Doc:
    return (node.name, "" if node.dims is None else dims(node.dims), "?" if node.optional else "")


def _param_widths(pieces: Sequence[Piece[Step]]) -> list[int]:
    """How wide each param is written: as the widest beside it that has the same flags."""
    runs: list[int] = []
    before = None
    for piece in pieces:
        param = piece.node if isinstance(piece.node, Param) else None
        flags = param and (param.frozen, param.shared, param.state)
        same = flags == before and not piece.blank
        runs.append(runs[-1] if runs and same else len(runs))
        before = flags
    own = [len(_declared(p.node)) if isinstance(p.node, Param) else 0 for p in pieces]
    widest = dict.fromkeys(runs, 0)
    for run, width in zip(runs, own, strict=True):
        if width <= _WIDEST:
            widest[run] = max(widest[run], width)
    return [widest[run] for run in runs]


def _declared(node: Param) -> str:
    flags = ("frozen " if node.frozen and not node.state else "") + (
        f"{node.shared} " if node.shared else ""
    )
    return flags + node.name + flat(dims(node.dims))


def _step(node: Step, column: int, width: int) -> Doc:
    def opened(word: str, rest: Doc) -> Doc:
        return (f"{word:<{column}} ", rest)

    match node:
        case Match():
            operands = bracketed("(", [_operand(operand) for operand in node.operands], ")")
            return opened("match", (_operand(node.result), " = ", node.operator, operands))
        case Require():
            return opened("require", expression(node.condition))
        case Param():
            sign = "~" if node.random else "="
            declared = f"{_declared(node):<{width}} {sign} "
            return opened("state" if node.state else "param", (declared, expression(node.init)))
        case Draw():
            drawn = (f"{node.shared} " if node.shared else "") + node.name
            of = "" if node.dims is None else dims(node.dims)
            fixed = "" if node.otherwise is None else (" else ", expression(node.otherwise))
            return opened("draw", (drawn, of, " ~ ", expression(node.distribution), fixed))
        case Unpack():
            names = ", ".join(name.name for name in node.names)
            return opened("let", (f"{names} = ", expression(node.value)))
        case Let():
            return opened("let", (f"{node.name} = ", expression(node.value)))
        case Apply():
            inner = node.application
            given = arguments(inner.arguments) if inner.arguments else ""
            return opened("apply", (inner.name, given))
        case Tune():
            names = " | ".join(name.name for name in node.params)
            return ("optimize ", names, " with ", settings(node.settings))
        case Charge():
            return ("penalty ", expression(node.value))
        case After():
            return _after(node)
        case Return():
            return ("return ", expression(node.value))
        case Assign():
            wide = max(column, len(node.target) + len(node.operator) - 1)
            return (f"{node.target:<{wide}}{node.operator:>2} ", expression(node.value))
