"""JSON from files, held against the form that it must have before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

ANY = object
"""The schema of what is not looked at."""

_WORDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}


class MalformedError(ValueError):
    """What is not of the form asked for; the message says where and how."""


@dataclass(frozen=True)
class Maybe:
    """null, or as ``of`` says."""

    of: Any


@dataclass(frozen=True)
class Each:
    """A mapping with any keys, whose values are as ``of`` says."""

    of: Any


def read_json(text: str, schema: Any) -> Any:
    """The data that ``text`` holds, of the form of ``schema``.

    A schema is a type, a list of one schema, a dict of schemas with just those keys, or one of the
    above. No key comes twice, no number is NaN or infinite, and texts can be written as UTF-8.

    Raises:
        MalformedError: if it is not so.

    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except MalformedError:
        raise
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as problem:
        raise MalformedError(f"it is no JSON: {problem}") from None
    check(data, schema)
    return data


Where = tuple[str | int, ...]
"""The keys and numbers that lead to a value."""


def check(value: Any, schema: Any, where: Where = ()) -> None:
    """Hold ``value``, found at ``where``, against ``schema``; as :func:`read_json`."""
    if isinstance(schema, Maybe):
        if value is not None:
            check(value, schema.of, where)
    elif isinstance(schema, Each):
        for key, item in _mapping(value, where).items():
            _utf8(key, where)
            check(item, schema.of, (*where, key))
    elif isinstance(schema, list):
        _is(value, list, where)
        for number, item in enumerate(value):
            check(item, schema[0], (*where, number))
    elif isinstance(schema, dict):
        known: dict[str, Any] = schema  # pyright: ignore[reportUnknownVariableType]
        given = _mapping(value, where)
        for key in known.keys() - given.keys():
            raise MalformedError(f"`{_written((*where, key))}` is missing")
        for key in given.keys() - known.keys():
            raise MalformedError(f"`{_written((*where, key))}` is unknown")
        for key, inner in known.items():
            check(given[key], inner, (*where, key))
    elif schema is not ANY:
        _is(value, schema, where)


def _is(value: Any, kind: type, where: Where) -> None:
    if type(value) is not kind:
        raise MalformedError(f"`{_written(where)}` is not {_WORDS[kind]}")
    if kind is str:
        _utf8(value, where)


def _mapping(value: Any, where: Where) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedError(f"`{_written(where)}` is no mapping" if where else "it is no mapping")
    return value  # pyright: ignore[reportUnknownVariableType]


def _written(where: Where) -> str:
    """A place in words, made only where something is wrong there."""
    text = ""
    for key in where:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            shown = key if len(key) <= 80 else f"{key[:77]}…"
            text += f".{shown}" if text else shown
    return text.encode(errors="replace").decode()


def _utf8(text: str, where: Where) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedError(f"`{_written(where)}` holds half a character") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise MalformedError(f"`{_written((key,))}` is there twice")
        found[key] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise MalformedError(f"{text} is no number")
