"""Whatever the text, there is a tree or there are errors that point into it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.language.diagnostics import Diagnostic, SurgeryError
from surgery.language.format import format_file
from surgery.language.lalr import grammar
from surgery.language.parse import parse, parse_selector
from surgery.language.syntax import File, Freeze
from surgery.language.words import RESERVED, SIGNS
from tests.language.strategies import files

_NOISE = [*RESERVED.values(), *SIGNS.values(), "q", "lora", "frezze", "Linear", "4", "1.5", "`a.*`"]
_NOISE += ['"text"', "+=", "<=", "# note\n", "`", '"', "'", "é", "\n", "12ab", "..", "`a[`"]
soup = st.lists(st.sampled_from(_NOISE), max_size=12).map(" ".join)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid text with a few words lost, doubled or put in."""
    text = format_file(draw(files()))
    words = [str(token) for token in grammar().tokens(text)]
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, max(0, len(words) - 1)))
        change: list[list[str]] = [
            [],
            words[place : place + 1] * 2,
            [draw(st.sampled_from(_NOISE))],
        ]
        words[place : place + 1] = draw(st.sampled_from(change))
    return " ".join(words)


def told(text: str) -> tuple[Diagnostic, ...]:
    try:
        parse(text)
    except SurgeryError as problem:
        return problem.diagnostics if str(problem) else pytest.fail("an error that says nothing")
    return ()


def sound(text: str) -> None:
    diagnostics = told(text)
    assert len(set(map(repr, diagnostics))) == len(diagnostics)
    for diagnostic in diagnostics:
        assert re.fullmatch(r"S1\d\d", diagnostic.code)
        assert diagnostic.message
        for label in diagnostic.labels:
            assert 0 <= label.span.start <= label.span.end <= len(text)


@given(soup)
def test_soup(text: str) -> None:
    sound(text)


@given(damaged())
def test_damaged_text(text: str) -> None:
    sound(text)


@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    sound(text)


@given(soup)
def test_a_selector_is_what_freeze_takes(text: str) -> None:
    """Only errors may differ, as a selector has no statement around it."""
    try:
        selector = parse_selector(text)
    except SurgeryError:
        return
    assert parse(f"freeze {text}").items == (Freeze(selector, span=selector.span),)


@given(files(), st.data())
def test_one_mistake_one_error(tree: File, data: st.DataObject) -> None:
    """A broken statement between sound ones is the only one told of."""
    lines = format_file(File((*tree.items,), tree.source))
    broken, code = data.draw(
        st.sampled_from(
            [
                ("on q", "S104"),
                ("let x 3", "S110"),
                ("freeze q v", "S107"),
                ("on q lora(r = 4", "S103"),
            ]
        )
    )
    with pytest.raises(SurgeryError) as caught:
        parse(f"freeze all\n{broken}\n{lines}")
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]


def test_a_mistake_in_each_step() -> None:
    text = """
    method a() {
      match y = module(x)
      requrie r < 3
      param A[r m] ~ normal()
      param B[r, n ~ normal()
      y += f(A B)
      y = 3 +
      apply m(3
    }
    freeze q v
    """
    with pytest.raises(SurgeryError) as caught:
        parse(text)
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert codes == ["S105", "S110", "S103", "S110", "S101", "S103", "S107"]


def test_a_broken_method_is_not_judged() -> None:
    """Its missing `match` may be in the part that was not understood."""
    with pytest.raises(SurgeryError) as caught:
        parse("method a() { mtch y = module(x) y = 2 }")
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["S105"]


def test_deep_nesting() -> None:
    with pytest.raises(SurgeryError, match="S123"):
        parse("let x = " + "(" * 10_000 + "1" + ")" * 10_000)


def test_a_thousand_lines() -> None:
    line = "on q|v in layer[-4:] where width > 100 except `a.**.b` expect 12 apply lora(r = 8)\n"
    assert len(parse(line * 1000).items) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "\x00\x01é" * 50_000,
        "\"`'" * 50_000,
        "on " + "a " * 20_000 + "5",
        "method m() { match y = module(x)\n" + "y = = 3\n" * 500 + "}",
        "the quick brown fox, it says: (nothing) of use\n" * 2000,
        "{" * 30 + "}" * 30_000,
    ],
    ids=["bytes", "quotes", "names", "steps", "prose", "braces"],
)
@pytest.mark.timeout(60)
def test_large_nonsense_takes_no_time(text: str) -> None:
    assert told(text)
