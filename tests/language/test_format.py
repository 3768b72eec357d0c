"""Laws of the canonical layout."""

from __future__ import annotations

from hypothesis import given, settings
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
    """A valid text with comments and blank lines strewn among its words."""
    text = format_file(draw(files()))
    tokens = grammar().tokens(text)
    edges = [0, *(edge for token in tokens for edge in (token.start_pos or 0, token.end_pos or 0))]
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


@settings(max_examples=100)
@given(commented())
def test_comments_stay(given: tuple[str, list[str]]) -> None:
    text, comments = given
    formatted = format_text(text)
    assert sorted(comment.text for comment in parse(formatted).comments) == sorted(comments)
    assert parse(formatted) == parse(text)
    assert format_text(formatted) == formatted
    assert "\n\n\n" not in formatted


def test_layout() -> None:
    text = """
# head

# lead


on q apply lora # same line
freeze all; train bias # last of the line
on q # inside
   # inside, too
   apply lora(r = 8, # rank
   alpha = 16)
# above the method
method parallel(f: block, gate = 1) { match y = module(x)  y += gate * f(x) } # below
let lr = 5e-4
on attention.self|`model.*.q_proj`|Linear in layer[-4:] where inputs > 100 except norm apply lora(
  r = 8)
on q apply lora(r = 8, alpha = 16, dropout = 0.1, gate = 3 * (1 - 2 / (3 + 4)), last_argument = 5)
block short(r) of h[*,d] { # note
   "Doc." # of the doc
   param a[1] = 0 # first


   param frozen bb[1] ~ normal()
   param c[1] ~ normal()
   require r < (a @ b) * c / (d * e)
   # of the let
   let z = aaaaaaaaaaaaaaaaaaaaaaaaaaa + (bbbbbbbbbbbbbbbbbbbbbbbbbb * cccccccccccccccccccc) - dddd
   return z
   # last
}
# end
"""
    assert (
        format_text(text)
        == """\
# head

# lead

on q apply lora  # same line
freeze all
train bias  # last of the line
# inside
# inside, too
# rank
on q apply lora(r = 8, alpha = 16)

# above the method
method parallel(f: block, gate = 1) {
  match y = module(x)
  y    += gate * f(x)
}  # below

let lr = 5e-4
on attention.self|`model.*.q_proj`|Linear in layer[-4:] where inputs > 100 except norm
  apply lora(r = 8)
on q
  apply lora(
    r = 8,
    alpha = 16,
    dropout = 0.1,
    gate = 3 * (1 - 2 / (3 + 4)),
    last_argument = 5,
  )

block short(r) of h[*, d] {  # note
  "Doc."
  # of the doc
  param   a[1] = 0  # first

  param   frozen bb[1] ~ normal()
  param   c[1] ~ normal()
  require r < (a @ b) * c / (d * e)
  # of the let
  let     z = aaaaaaaaaaaaaaaaaaaaaaaaaaa
    + bbbbbbbbbbbbbbbbbbbbbbbbbb * cccccccccccccccccccc
    - dddd
  return z
  # last
}

# end
"""
    )
