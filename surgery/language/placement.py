"""Where comments and blank lines stood around the nodes of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from surgery.language.source import SourceText
from surgery.language.syntax import After, Block, Comment, Method, Node

_OPENING = re.compile(r'"(?:[^"\\\r\n]|\\.)*"|#[^\r\n]*|(\{)')


T = TypeVar("T", bound=Node)


@dataclass
class Piece(Generic[T]):
    """A node, or a comment on a line of its own, and what stood around it."""

    node: T | None
    comment: Comment | None = None
    blank: bool = False
    trailing: Comment | None = None


def place(nodes: Sequence[T], comments: Iterable[Comment], source: SourceText) -> list[Piece[T]]:
    """``nodes`` with the comments around and inside them.

    A comment on the line where a node ends trails it; one inside a statement moves above it; those
    in a body between braces are left to that.
    """
    pieces: list[Piece[T]] = []
    waiting = sorted(comments, key=lambda comment: comment.offset)
    end = 0

    def put(piece: Piece[T], first: int, last: int) -> None:
        nonlocal end
        piece.blank = bool(pieces) and source.line_ends(end, first) > 1
        pieces.append(piece)
        end = last

    def put_comment(comment: Comment) -> None:
        nonlocal end
        line_end = source.line_end(comment.offset)
        last = pieces[-1] if pieces else None
        if last and last.node and not source.line_ends(end, comment.offset):
            last.trailing = comment
            end = line_end
        else:
            put(Piece(None, comment), comment.offset, line_end)

    for node in nodes:
        if node.span.source is not source:
            pieces.append(Piece(node))
            continue
        while waiting and waiting[0].offset < node.span.start:
            put_comment(waiting.pop(0))
        inner_end = body_start(node) if isinstance(node, Method | Block | After) else node.span.end
        for order, comment in enumerate(_take(waiting, inner_end)):
            first = node.span.start if order == 0 else end
            put(Piece(None, comment), first, first)
        if isinstance(node, Method | Block | After):
            _take(waiting, node.span.end)
        put(Piece(node), max(end, node.span.start), node.span.end)
    for comment in waiting:
        put_comment(comment)
    return pieces


def finish(piece: Piece[T], text: str, indent: str = "") -> list[str]:
    """The lines of ``piece``, whose node reads ``text``."""
    if piece.comment:
        text = written(piece.comment)
    elif piece.trailing:
        text += f"  {written(piece.trailing)}"
    return [*([""] if piece.blank else []), *(indent + text).split("\n")]


def written(comment: Comment) -> str:
    return f"# {comment.text}".rstrip()


def body_start(node: Method | Block | After) -> int:
    """The offset after the brace that opens the body."""
    named = node.event_span if isinstance(node, After) else node.name_span
    for found in _OPENING.finditer(node.span.source.text, named.end, node.span.end):
        if found[1]:
            return found.end()
    return node.span.end


def _take(waiting: list[Comment], end: int) -> list[Comment]:
    taken = [comment for comment in waiting if comment.offset < end]
    del waiting[: len(taken)]
    return taken
