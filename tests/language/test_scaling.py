"""Work grows with the text, and no faster: counted in calls, so that no clock decides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from surgery.language.diagnostics import SurgeryError
from surgery.language.format import format_text
from surgery.planning.spec import read_spec

TEXTS: dict[str, Callable[[int], str]] = {
    "broken lines": lambda n: "foo bar\n" * n,
    "broken statements": lambda n: "on q\n" * n,
    "words that are none": lambda n: "é " * n,
    "broken steps": lambda n: "method m() {\n" + " param A\n" * n + "}",
    "broken arguments": lambda n: "on q apply lora(1, r = 2, r = 3)\n" * n,
    "verbs": lambda n: "on q " + "a " * n,
    "verbs, then a mistake": lambda n: "on q " + "a " * n + "(",
    "brackets": lambda n: "let x = " + "(" * n,
    "a sum": lambda n: "let x = " + "1 + " * n + "1",
    "a product of matrices": lambda n: "let x = " + "1 @ 2 * " * n + "1",
    "signs": lambda n: "let x = " + "-" * n + "1",
    "not": lambda n: "freeze all where " + "not " * n + "1",
    "and": lambda n: "freeze all where " + "1 < 2 and " * n + "1 < 2",
    "a union": lambda n: "freeze " + "q | " * n + "q",
    "braces in a path": lambda n: "freeze `" + "{a,b}" * n + "`",
    "constants": lambda n: "\n".join(f"let a{i} = {i}" for i in range(n)),
    "a name again and again": lambda n: "let a = 1\n" * n,
    "arguments": lambda n: "on q apply lora(" + "1, " * n + ")",
    "statements": lambda n: "on q apply ia3\n" * n,
    "methods": lambda n: "\n".join(
        f"method m{i}() {{ # note\n match y = linear(x)\n y = 2 * y }}" for i in range(n)
    ),
    "comments": lambda n: "let x = # c\n" + "1 + # d\n" * n + " 1",
    "carriage returns": lambda n: "# a\r" * n + "let x = 1",
    "one long line": lambda n: 'let x = "' + "a" * n + '" + )',
}


def calls(work: Callable[[str], Any], text: str) -> int:
    """How many functions are called, those of Python's own included."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    told = None
    try:
        work(text)
    except SurgeryError as problem:
        told = problem
    finally:
        sys.setprofile(None)
    if told is not None:
        assert len(told.diagnostics) <= 51
        assert len(str(told)) < 100_000
    return count


@pytest.mark.parametrize("work", [format_text, read_spec], ids=["laid out", "read"])
@pytest.mark.parametrize("name", TEXTS)
def test_twice_the_text_is_twice_the_work(name: str, work: Callable[[str], Any]) -> None:
    calls(work, TEXTS[name](20))
    once, twice = (calls(work, TEXTS[name](n)) for n in (150, 300))
    assert twice <= 2.3 * once + 2000


def test_a_long_flat_text_is_read_whole() -> None:
    terms = "0 + " * 5000
    spec = read_spec(f"let rank = {terms} 8\non q where {terms} index < 4 apply lora(rank)")
    assert spec.wrapped(0).closure.arguments["r"].number == 8
    again = read_spec(format_text(spec.text))
    assert again.file == spec.file
    assert hash(again.file.items) == hash(spec.file.items)
    assert repr(again.file.items) == repr(spec.file.items)
