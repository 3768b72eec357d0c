"""Colours for terminals: the same text, its lines painted by the sign they start with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_SIGNS = {
    "+": "green",
    "-": "red",
    "~": "yellow",
    "!": "bold yellow",
    "…": "dim",
    "ok": "green",
    "broken": "bold red",
    "failed": "bold red",
    "note:": "cyan",
    "Plan:": "bold",
    "Difference:": "bold",
    "No": "bold",
}
_PLACE = re.compile(r"\S+:\d+$")
_HEAD = re.compile(r"(error|warning)\[S\d+\]:")
_FRAME = re.compile(r"\s*(\d+ )?\||\s*(-->|:::)")
_CARETS = re.compile(r"(?<=\| )\s*([\^-]+.*)$")


def painted(text: str) -> Text:
    """``text`` with the colours of a report or of an error."""
    from rich.text import Text

    return Text("\n").join(_line(line) for line in text.split("\n"))


def _line(line: str) -> Text:
    from rich.text import Text

    result = Text(line)
    head = _HEAD.match(line)
    if head:
        result.stylize("bold red" if head[1] == "error" else "bold yellow", 0, head.end())
        result.stylize("bold", head.end())
        return result
    frame = _FRAME.match(line)
    if frame:
        result.stylize("blue", 0, frame.end())
        carets = _CARETS.search(line)
        if carets and set(carets[1][:1]) <= set("^-"):
            result.stylize("red" if carets[1][0] == "^" else "blue", carets.start(1))
        return result
    if line.lstrip().startswith("= help:"):
        result.stylize("cyan")
        return result
    sign = line.split(maxsplit=1)[0] if line.strip() else ""
    if sign in _SIGNS:
        start = line.index(sign)
        whole = sign in ("!", "…", "Plan:", "Difference:", "No")
        result.stylize(_SIGNS[sign], start, None if whole else start + len(sign))
    place = _PLACE.search(line)
    if place:
        result.stylize("dim", place.start())
    return result
