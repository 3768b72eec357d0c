"""The parse tables kept beside the grammar are those that Lark makes of it, or are not used."""

from __future__ import annotations

import json
from typing import Any

import lark
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.language import tables
from surgery.language.build import Builder
from surgery.language.resources import resource
from surgery.language.source import SourceText

GRAMMAR = tables.GRAMMAR.read_text(encoding="utf-8")
STORED = tables.TABLES.read_text(encoding="utf-8")
HEAD: dict[str, str] = json.loads(STORED.partition("\n")[0])
same_lark = pytest.mark.skipif(
    HEAD["lark"] != lark.__version__, reason="this is another Lark, which makes its own tables"
)


def test_they_are_of_this_grammar() -> None:
    assert HEAD["grammar"] == tables.digest(GRAMMAR), "the grammar has changed: run `make tables`"


@same_lark
def test_they_are_what_lark_makes() -> None:
    assert tables.saved(GRAMMAR) == STORED, "run `make tables`"


@same_lark
def test_they_are_used() -> None:
    assert tables.restored(STORED, GRAMMAR) is not None


def items(parser: Any, builder: Builder, text: str) -> object:
    builder.begin(SourceText("<text>", text))
    return parser.parse(text)


@same_lark
@pytest.mark.parametrize(
    "path", sorted(resource("rules").glob("*.peft")), ids=lambda path: path.stem
)
def test_both_parsers_build_the_same(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    builder = Builder()
    stored = tables.restored(STORED, GRAMMAR, builder)
    made = tables.made(GRAMMAR, builder)
    assert items(stored, builder, text) == items(made, builder, text)


@given(st.integers(0, len(STORED) - 1), st.sampled_from(["", " ", "0", "}", '"', "\n", "ß"]))
def test_damaged_ones_are_not_used(place: int, character: str) -> None:
    damaged = STORED[:place] + character + STORED[place + 1 :]
    assert damaged == STORED or tables.restored(damaged, GRAMMAR) is None


@given(st.text(max_size=40))
def test_what_is_no_table_is_not_used(text: str) -> None:
    assert tables.restored(text, GRAMMAR) is None


@pytest.mark.parametrize("version", ["0.0", "999.0"])
def test_those_of_another_lark_are_not_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lark, "__version__", version)
    assert tables.restored(STORED, GRAMMAR) is None


def test_those_of_another_grammar_are_not_used() -> None:
    assert tables.restored(STORED, GRAMMAR + "\n// another") is None


@pytest.mark.parametrize("stored", ["", "{}\n{}\n"])
def test_without_them_the_parser_is_made(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_stored", lambda: stored)
    builder = Builder()
    found = items(tables.parser(builder), builder, "on q apply lora(4)")
    assert isinstance(found, tuple)
    assert len(found) == 1
