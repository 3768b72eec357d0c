"""What a glob that matches nothing was most likely meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from surgery.language.glob import alternatives

_PLAIN = re.compile(r"[\w-]+")


def suggest(pattern: str, paths: Iterable[str], limit: int = 3) -> list[str]:
    """Globs close to ``pattern``, nearest first; each matches one of ``paths`` at least.

    Indices are left open: a wrong layer of `layers.40.mlp` suggests `layers.*.mlp`.
    """
    known = [path.split(".") for path in paths]
    found: dict[str, None] = {}
    for text, _ in alternatives(pattern):
        wanted = [_open(component) for component in text.removeprefix(".").split(".")]
        for size in dict.fromkeys((len(wanted), 1)):
            tails = _tails(known, size)
            close = get_close_matches(".".join(wanted[-size:]), tails, n=limit, cutoff=0.6)
            found.update(dict.fromkeys(close))
            if close:
                break
    return list(found)[:limit]


def _tails(paths: list[list[str]], size: int) -> list[str]:
    tails = (path[-size:] for path in paths if len(path) >= size)
    plain = (tail for tail in tails if all(map(_PLAIN.fullmatch, tail)))
    opened = dict.fromkeys(tuple(map(_open, tail)) for tail in plain)
    return [".".join(tail) for tail in opened if set(tail) != {"*"}]


def _open(component: str) -> str:
    return "*" if component.isdigit() else component
