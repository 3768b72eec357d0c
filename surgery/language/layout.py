"""Documents that know where they may break, laid out within a width (after Wadler's printer)."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 88
STEP = 2


@dataclass(frozen=True, slots=True)
class Line:
    """``flat`` as long as its group fits on the line, a new line otherwise."""

    flat: str = " "


@dataclass(frozen=True, slots=True)
class IfBroken:
    """``text``, but only where the group is broken over lines."""

    text: str


@dataclass(frozen=True, slots=True)
class Nest:
    """``doc``, with its new lines indented by one step more."""

    doc: Doc


@dataclass(frozen=True, slots=True)
class Unbroken:
    """``doc`` on one line if it fits; else each of its own lines breaks."""

    doc: Doc


Doc = str | Line | IfBroken | Nest | Unbroken | tuple["Doc", ...]
_Work = tuple[int, bool, Doc]


def layout(doc: Doc, indent: int = 0) -> str:
    """The text of ``doc``, as it stands when its first line starts at column ``indent``."""
    output: list[str] = []
    column = indent
    stack: list[_Work] = [(indent, True, doc)]
    while stack:
        depth, broken, top = stack.pop()
        match top:
            case str():
                output.append(top)
                column += len(top)
            case Line() if broken:
                output.append("\n" + " " * depth)
                column = depth
            case Line():
                output.append(top.flat)
                column += len(top.flat)
            case IfBroken():
                text = top.text if broken else ""
                output.append(text)
                column += len(text)
            case Nest():
                stack.append((depth + STEP, broken, top.doc))
            case Unbroken():
                fits = not broken or _fits(top.doc, WIDTH - column, stack)
                stack.append((depth, not fits, top.doc))
            case _:
                stack.extend((depth, broken, part) for part in reversed(top))
    return "".join(output)


def _fits(doc: Doc, room: int, after: list[_Work]) -> bool:
    """Whether ``doc`` on one line, with all up to the next possible break, takes ``room``."""
    pending = [(False, doc)]
    rest = len(after)
    while room >= 0:
        if not pending:
            if rest == 0:
                return True
            rest -= 1
            pending.append((after[rest][1], after[rest][2]))
        broken, top = pending.pop()
        match top:
            case str():
                room -= len(top)
            case Line():
                if broken:
                    return True
                room -= len(top.flat)
            case IfBroken():
                room -= len(top.text) if broken else 0
            case Nest():
                pending.append((broken, top.doc))
            case Unbroken():
                # A group that comes later may still break by itself.
                pending.append((broken and _has_line(top.doc), top.doc))
            case _:
                pending.extend((broken, part) for part in reversed(top))
    return False


def _has_line(doc: Doc) -> bool:
    match doc:
        case Line():
            return True
        case Nest() | Unbroken():
            return _has_line(doc.doc)
        case tuple():
            return any(_has_line(part) for part in doc)
        case _:
            return False


def joined(docs: list[Doc], separator: Doc) -> Doc:
    """``docs`` with ``separator`` between them."""
    parts: list[Doc] = []
    for doc in docs:
        parts += [separator, doc] if parts else [doc]
    return tuple(parts)


def bracketed(opener: str, docs: list[Doc], closer: str) -> Doc:
    """``docs`` between brackets, one a line where they do not fit on one."""
    if not docs:
        return opener + closer
    inner: Doc = (Line(""), joined(docs, (",", Line())))
    return Unbroken((opener, Nest(inner), IfBroken(","), Line(""), closer))


def flat(doc: Doc) -> str:
    """The text of ``doc`` on one line."""
    match doc:
        case str():
            return doc
        case Line():
            return doc.flat
        case IfBroken():
            return ""
        case Nest() | Unbroken():
            return flat(doc.doc)
        case _:
            return "".join(flat(part) for part in doc)
