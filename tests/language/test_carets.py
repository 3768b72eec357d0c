"""Lines and carets, whatever ends a line and whatever stands on it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.language.diagnostics import SurgeryError, error, render
from surgery.language.format import format_file
from surgery.language.parse import parse
from surgery.language.source import SourceText, Span
from tests.language.strategies import files

ENDS = st.sampled_from(["\n", "\r", "\r\n"])


@given(files(), ENDS)
def test_every_line_end_ends_lines_and_comments(file, end: str) -> None:
    text = format_file(file).replace("\n", "\n# note\n")
    plain, other = parse(text), parse(text.replace("\n", end))
    assert other == plain
    assert [c.text for c in other.comments] == [c.text for c in plain.comments]
    assert format_file(other) == format_file(plain)


@given(st.lists(st.sampled_from(["# note", "", "let a = 1", "  "])), ENDS)
def test_places_do_not_depend_on_the_line_end(lines: list[str], end: str) -> None:
    text = end.join([*lines, "  on `x"])
    with pytest.raises(SurgeryError) as caught:
        parse(text)
    span = caught.value.diagnostics[-1].labels[0].span
    assert span.source.position(span.start) == (len(lines) + 1, 6)
    assert span.source.line(len(lines) + 1) == "  on `x"


@pytest.mark.parametrize(
    ("text", "carets"),
    [
        ("let a = é", "        ^"),
        ('let 漢 = "字" é', "    ^^"),
        ('use "漢字" é', "           ^"),
        ('use "e\u0301" é', "        ^"),
        ("\tlet a = é", "\t        ^"),
        ("let a\x00 = 1", "     ^"),
        ("\ufefflet a = é", "         ^"),
    ],
)
def test_carets_stand_below_what_they_mean(text: str, carets: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        parse(text)
    line = render(caught.value.diagnostics[0]).split("\n")[4]
    assert line.partition("| ")[2] == carets


@given(st.text(max_size=400), st.integers(0, 400), st.integers(0, 400))
def test_any_text_can_be_shown(text: str, start: int, length: int) -> None:
    first = min(start, len(text))
    span = Span(SourceText("a\x1b.peft", text), first, min(len(text), first + length))
    frame = str(error("S101", f"found `{text}`", span, help=text))
    frame.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", frame)


def test_of_a_long_line_the_part_around_the_carets_is_shown() -> None:
    with pytest.raises(SurgeryError) as caught:
        parse("let a = " + "1 + " * 200 + "é" + " + 1" * 200)
    lines = str(caught.value).split("\n")
    text, carets = (line.partition("| ")[2] for line in lines[3:5])
    assert len(text) < 170
    assert text.startswith("…")
    assert text.endswith("…")
    assert text[carets.index("^")] == "é"


def test_half_a_character_is_none() -> None:
    with pytest.raises(SurgeryError, match="S102"):
        parse("# \ud800\nlet a = 1")
