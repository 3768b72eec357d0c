"""The canonical layout of a file: one statement a line, bodies indented and aligned."""

from __future__ import annotations

from surgery.language.definitions import definition
from surgery.language.layout import Doc, Line, Nest, Unbroken, bracketed, layout
from surgery.language.parse import parse
from surgery.language.placement import Piece, finish, place
from surgery.language.source import SourceText
from surgery.language.syntax import (
    Block,
    File,
    Freeze,
    Item,
    Let,
    Method,
    On,
    Optimize,
    Penalty,
    Train,
    Use,
)
from surgery.language.unparse import application, expression, quote, selector, settings


def format_text(text: str | SourceText, name: str = "<spec>") -> str:
    """``text`` laid out afresh, with every comment; an error where it does not parse."""
    return format_file(parse(text, name))


def format_file(file: File) -> str:
    """The canonical text of ``file``."""
    pieces = place(file.items, file.comments, file.source)
    _set_apart(pieces)
    lines: list[str] = []
    for piece in pieces:
        lines += finish(piece, _item(piece.node, file) if piece.node else "")
    return "".join(f"{line}\n" for line in lines)


def _set_apart(pieces: list[Piece[Item]]) -> None:
    """A blank line around each definition, above the comments that lead it."""
    for order, piece in enumerate(pieces):
        if not isinstance(piece.node, Method | Block):
            continue
        first = order
        while first > 0 and pieces[first - 1].comment and not pieces[first].blank:
            first -= 1
        pieces[first].blank = first > 0
        if order + 1 < len(pieces):
            pieces[order + 1].blank = True


def _item(node: Item, file: File) -> str:
    if isinstance(node, Method | Block):
        return definition(node, file.comments if node.span.source is file.source else ())
    return layout(_statement(node))


def _statement(node: On | Freeze | Train | Optimize | Penalty | Let | Use) -> Doc:
    match node:
        case On():
            name = f" as {node.name}" if node.name else ""
            chain = Nest((Line(), application(node.application), name))
            return Unbroken(("on ", selector(node.selector), chain))
        case Freeze():
            return ("freeze ", selector(node.selector))
        case Train():
            return ("train ", selector(node.selector))
        case Optimize():
            given = Nest((Line(), "with ", settings(node.settings)))
            return Unbroken(("optimize ", selector(node.selector), given))
        case Penalty():
            of = Nest((Line(), "of ", selector(node.selector)))
            return Unbroken(("penalty ", expression(node.value), of))
        case Let():
            return (f"let {node.name} = ", expression(node.value))
        case Use():
            names: Doc = "" if node.names is None else (" ", bracketed("(", [*node.names], ")"))
            return (f"use {quote(node.path)}", names)
