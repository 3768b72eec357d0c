"""The layout of methods and blocks: what their bodies begin with stands in columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from surgery.language.layout import STEP, Doc, bracketed, flat, layout
from surgery.language.placement import Piece, body_start, finish, place, written
from surgery.language.syntax import (
    Apply,
    Assign,
    Block,
    Comment,
    Let,
    Match,
    Method,
    Operand,
    Param,
    Parameter,
    Require,
    Return,
    Step,
)
from surgery.language.unparse import arguments, dims, expression, quote

_WIDEST = 32
_COLUMN: dict[type[Step], int] = {Match: 5, Param: 5, Apply: 5, Require: 7, Let: 3}


def definition(node: Method | Block, comments: Sequence[Comment]) -> str:
    """The text of ``node`` with those of ``comments`` that stand in its body."""
    source, start = node.span.source, body_start(node)
    first, last = (bisect_left(comments, o, key=_offset) for o in (start, node.span.end))
    inside = [*comments[first:last]]
    header = layout(_header(node))
    if inside and not source.text[start : inside[0].offset].strip(" \t"):
        header += f"  {written(inside.pop(0))}"
    lines = [header]
    indent = " " * STEP
    if node.doc is not None:
        lines += [indent + quote(line) for line in node.doc.split("\n")]
    pieces = place(node.body, inside, source)
    column = max((_COLUMN.get(type(step), 0) for step in node.body), default=0)
    for piece, width in zip(pieces, _param_widths(pieces), strict=True):
        text = layout(_step(piece.node, column, width), STEP) if piece.node else ""
        lines += finish(piece, text, indent)
    return "\n".join([*lines, "}"])


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
        flags = param and (param.frozen, param.shared)
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
    flags = ("frozen " if node.frozen else "") + (f"{node.shared} " if node.shared else "")
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
            return opened("param", (declared, expression(node.init)))
        case Let():
            return opened("let", (f"{node.name} = ", expression(node.value)))
        case Apply():
            inner = node.application
            given = arguments(inner.arguments) if inner.arguments else ""
            return opened("apply", (inner.name, given))
        case Return():
            return ("return ", expression(node.value))
        case Assign():
            wide = max(column, len(node.target) + len(node.operator) - 1)
            return (f"{node.target:<{wide}}{node.operator:>2} ", expression(node.value))
