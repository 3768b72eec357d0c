"""Laws of the canonical layout."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from surgery.language.format import format_file, format_text
from surgery.language.lalr import grammar
from surgery.language.parse import parse
from surgery.language.syntax import File
from tests.language.strategies import files


@given(files())
def test_parse_undoes_format(tree: File) -> None:
    assert parse(format_file(tree)) == tree


@given(files())
def test_format_is_idempotent(tree: File) -> None:
    text = format_file(tree)
    assert format_text(text) == text


@st.composite
def commented(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A valid text with comments, blank lines and `;` strewn between its words."""
    text = format_file(draw(files()))
    edges = [token.start_pos or 0 for token in grammar().tokens(text)] + [len(text)]
    places = draw(st.lists(st.sampled_from(edges), max_size=6))
    comments: list[str] = []
    for number, place in enumerate(sorted(places, reverse=True)):
        comments.append(f"note {number}")
        lead, tail = (
            draw(st.sampled_from(["", "\n", "\n\n\n  "])),
            draw(st.sampled_from(["", "\n"])),
        )
        text = f"{text[:place]}{lead}#note {number}\n{tail}{text[place:]}"
    return text, comments


@given(commented())
def test_comments_stay(given: tuple[str, list[str]]) -> None:
    text, comments = given
    formatted = format_text(text)
    assert sorted(comment.text for comment in parse(formatted).comments) == sorted(comments)
    assert parse(formatted) == parse(text)
    assert format_text(formatted) == formatted
    assert "\n\n\n" not in formatted
