"""Lark's parse tables, made once and kept beside the grammar: making them takes longer than all else.

They are plain JSON, so that nothing is run when they are read. The line before them has digests of the
grammar and of the tables, and the version of Lark that made them; where one differs, the tables are
made anew, in memory. `make tables` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from surgery.language.resources import NoTextError, read_text, resource

GRAMMAR = resource("grammar", "peft.lark")
TABLES = GRAMMAR.with_suffix(".jsonl")

_OPTIONS: Mapping[str, Any] = {
    "start": "file",
    "parser": "lalr",
    # Every word is reserved everywhere, so the lexer needs no context, and without it
    # each mistake surfaces where it is.
    "lexer": "basic",
    "keep_all_tokens": True,
    "maybe_placeholders": False,
}


def parser(builder: Any) -> Any:
    """A `Lark` whose reductions call the methods of ``builder``: from its tables, or made anew."""
    text = GRAMMAR.read_text(encoding="utf-8")
    return restored(_stored(), text, builder) or made(text, builder)


def made(text: str, builder: Any = None) -> Any:
    """The parser that Lark makes of the grammar ``text``."""
    from lark import Lark

    return Lark(text, transformer=builder, **_OPTIONS)


def restored(stored: str, text: str, builder: Any = None) -> Any:
    """The parser that is ``stored``, or None if it is not this Lark's for the grammar ``text``."""
    from lark import Lark

    head, _, body = stored.partition("\n")
    if head != _head(text, body):
        return None
    try:
        found = json.loads(body)
        # JSON has only texts as keys.
        found["memo"] = _by_number(found["memo"])
        table = found["data"]["parser"]["parser"]
        table["tokens"] = _by_number(table["tokens"])
        table["states"] = {k: _by_number(v) for k, v in _by_number(table["states"]).items()}
        lark: Any = Lark
        # As the parsers do that Lark itself writes as programs.
        return lark._load_from_dict(**found, transformer=builder)
    except (LookupError, TypeError, AttributeError):
        return None  # another Lark under the same version


def saved(text: str) -> str:
    """What is stored for the grammar ``text``."""
    from lark.grammar import Rule
    from lark.lexer import TerminalDef

    data, memo = made(text).memo_serialize([TerminalDef, Rule])
    del data["options"]["transformer"]
    data["parser"]["parser"] = _in_order(data["parser"]["parser"])
    body = json.dumps({"data": data, "memo": memo}, separators=(",", ":"), sort_keys=True) + "\n"
    return f"{_head(text, body)}\n{body}"


def _head(text: str, body: str) -> str:
    """What the tables of the grammar ``text`` were made of, as the first line has it."""
    from lark import __version__

    made_of = {"grammar": digest(text), "lark": __version__, "tables": _digest(body)}
    return json.dumps(made_of)


def digest(text: str) -> str:
    """A digest of the grammar ``text`` and of how it is read."""
    return _digest(f"{sorted(_OPTIONS.items())}\n{text}")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


_SHIFT = 0


def _in_order(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with its tokens by name and its states as they are reached: Lark's numbers vary."""
    tokens: Mapping[int, str] = table["tokens"]
    states: Mapping[int, Mapping[int, tuple[int, Any]]] = table["states"]
    actions = {
        state: sorted((tokens[token], *action) for token, action in row.items())
        for state, row in states.items()
    }
    reached = dict.fromkeys(table["start_states"].values())
    waiting = list(reached)
    for state in waiting:
        found = [arg for _, kind, arg in actions[state] if kind == _SHIFT and arg not in reached]
        reached |= dict.fromkeys(found)
        waiting += found
    numbers = {state: number for number, state in enumerate(reached)}
    names = sorted(tokens.values())
    return {
        "tokens": dict(enumerate(names)),
        "states": {
            numbers[state]: {
                names.index(token): (kind, numbers[arg] if kind == _SHIFT else arg)
                for token, kind, arg in row
            }
            for state, row in actions.items()
        },
        **{
            which: {start: numbers[state] for start, state in table[which].items()}
            for which in ("start_states", "end_states")
        },
    }


def _stored() -> str:
    try:
        return read_text(TABLES)
    except NoTextError:
        return ""


def _by_number(table: Mapping[str, Any]) -> dict[int, Any]:
    return {int(k): v for k, v in table.items()}


if __name__ == "__main__":
    TABLES.write_text(saved(GRAMMAR.read_text(encoding="utf-8")), encoding="utf-8")
