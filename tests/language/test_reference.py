"""The reference and the grammar say the same, and every example in it holds."""

from __future__ import annotations

import logging
import os
import re
from itertools import groupby

import pytest

from surgery.language.build import Builder
from surgery.language.diagnostics import SurgeryError
from surgery.language.lalr import grammar
from surgery.language.parse import parse
from surgery.language.resources import resource
from surgery.language.words import RESERVED
from surgery.language.words import SIGNS as WORD_SIGNS
from surgery.rules.dims import FUNCTIONS
from surgery.rules.distributions import DISTRIBUTIONS
from surgery.rules.expression import SIGNS
from surgery.rules.primitives import PRIMITIVES

REFERENCE = resource("grammar", "README.md").read_text(encoding="utf-8")
GRAMMAR = resource("grammar", "peft.lark").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```peft(?: error=(\w+))?\n(.*?)^```$", REFERENCE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("code", "text"), EXAMPLES)
def test_example(code: str, text: str) -> None:
    if not code:
        assert parse(text).items
        return
    with pytest.raises(SurgeryError) as caught:
        parse(text)
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]


def test_there_are_examples_of_both_kinds() -> None:
    assert {bool(code) for code, _ in EXAMPLES} == {True, False}


def test_reserved_words() -> None:
    lookahead = re.search(r"^NAME: /\(\?!\(\?:([a-z|]+)\)", GRAMMAR, re.MULTILINE)
    documented = re.search(r"^\| reserved \| (.*) \|$", REFERENCE, re.MULTILINE)
    quoted = set(re.findall(r'"([a-z]+)"', GRAMMAR))
    assert lookahead
    assert documented
    assert quoted == set(RESERVED.values()) == set(lookahead[1].split("|"))
    assert quoted == set(re.findall(r"`(\w+)`", documented[1]))


def test_words_are_called_as_the_grammar_calls_them() -> None:
    terminals = {terminal.name: terminal.pattern for terminal in grammar()._lark.terminals}
    plain = {name: p.value for name, p in terminals.items() if p.type == "str"}
    assert plain == RESERVED | WORD_SIGNS


def test_every_rule_has_its_method() -> None:
    rules = {rule.alias or str(rule.origin.name) for rule in grammar()._lark.rules}
    inlined = {str(r.origin.name) for r in grammar()._lark.rules if r.options.expand1}
    built = {rule for rule in rules if not rule.startswith("__")} - inlined
    assert built == {rule for rule in built if callable(getattr(Builder, rule, None))}


def test_no_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    from lark import Lark, logger

    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(caplog.handler)
    try:
        Lark(GRAMMAR, start="file", parser="lalr", propagate_positions=True)
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    assert "conflict" not in caplog.text.lower()


def test_strict() -> None:
    """No two terminals match one text; Lark needs `interegular` to tell."""
    pytest.importorskip("interegular")
    from lark import Lark

    Lark(GRAMMAR, start="file", parser="lalr", strict=True, propagate_positions=True)


def test_tests_of_where_are_documented() -> None:
    from surgery.anatomy.where import NAMES

    sentence = re.search(r"A test may use (.*?);", REFERENCE, re.DOTALL)
    assert sentence
    assert set(re.findall(r"`(\w+)`", sentence[1])) == set(NAMES)


def test_operators_are_documented() -> None:
    from surgery.rules.state import OPERANDS

    table = REFERENCE.partition("| operator | operands |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, re.MULTILINE)
    documented = {name: tuple(re.findall(r"`(\w+)`", operands)) for name, operands in rows}
    assert documented == OPERANDS


def functions() -> str:
    """The rows of the functions on tensors; those that say the same stand together."""
    written = [p for p in PRIMITIVES.values() if p.name not in SIGNS and p.name != "negate"]
    groups = groupby(written, key=lambda p: p.says)
    rows = ["| | |", "|---|---|"]
    for says, group in groups:
        together = list(group)
        plain = len(together) > 1 and all(p.arguments == "x" for p in together)
        shown = " ".join(f"`{p.name if plain else p.usage}`" for p in together)
        rows.append(f"| {shown} | {says} |")
    return "\n".join(rows)


def test_functions_on_tensors_are_the_rows() -> None:
    before, marker, rest = REFERENCE.partition("<!-- functions -->\n\n")
    shown, end, after = rest.partition("\n\n<!-- end -->")
    assert marker
    assert end
    if os.environ.get("UPDATE_GOLDEN"):
        page = before + marker + functions() + end + after
        resource("grammar", "README.md").write_text(page, encoding="utf-8")
    else:
        assert shown == functions()


def test_functions_on_numbers_are_documented() -> None:
    text = REFERENCE.partition("Functions on numbers")[2].partition("## Layout")[0]
    assert set(re.findall(r"`(\w+)[`(]", text)) == set(FUNCTIONS) | set(DISTRIBUTIONS)
