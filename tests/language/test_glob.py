"""Globs: the table of the reference, and laws against a reading that shares no code."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.language.glob import GlobError, alternatives, compile_glob
from tests.language.strategies import globs

TABLE = [
    ("mlp", "mlp a.mlp a.b.mlp", "mlps my_mlp mlp.up a.mlp.up"),
    ("mlp.up", "mlp.up a.mlp.up", "mlp.gate.up up a.xmlp.up"),
    ("*_proj", "q_proj a.v_proj _proj", "q_proj.x a_proj.b"),
    ("*.q", "a.q b.a.q", "q"),
    ("h.*", "h.0 a.h.b", "h h.0.a"),
    ("h.*.q", "h.0.q a.h.1.q", "h.q h.0.1.q"),
    ("**.q", "q a.q a.b.q", "a.qq"),
    ("h.**.q", "h.q h.0.q a.h.0.b.q", "hq h.0.qq"),
    ("h.**", "h.0 h.0.a x.h.0", "h xh.0"),
    ("**", "a a.b", ""),
    (".a", "a", "b.a"),
    (".a.**.q", "a.q a.b.c.q", "x.a.q"),
    ("a**b", "ab a.b axx.b x.a.y.b", "b a"),
    ("?", "a b.a", "ab a.ab"),
    ("a?", "ab", "a a.b"),
    ("[qk]_proj", "q_proj a.k_proj", "v_proj qk_proj"),
    ("l[0-3]", "l0 l3", "l4 l"),
    ("l[!0-3]", "l4 lx", "l0 l."),
    ("[!a]x", "bx a.bx", "ax a.x"),
    ("{q,k}_proj", "q_proj k_proj", "v_proj"),
    ("{mlp.up,attn.{q,k}}.bias", "mlp.up.bias x.attn.k.bias", "attn.v.bias mlp.bias"),
    ("x{,_a}", "x x_a", "x_b"),
    ("q|.v", "q a.q v", "a.v"),
    (" q | v ", "q v", "w"),
    ("a+b", "a+b", "aab"),
]


@pytest.mark.parametrize(("pattern", "inside", "outside"), TABLE)
def test_table(pattern: str, inside: str, outside: str) -> None:
    matches = compile_glob(pattern)
    assert [path for path in inside.split() if not matches(path)] == []
    assert [path for path in outside.split() if matches(path)] == []
    assert not matches("")


@pytest.mark.parametrize(
    ("pattern", "start", "end"),
    [
        ("", 0, 1),
        ("a|", 1, 2),
        ("|a", 0, 1),
        ("a||b", 1, 2),
        ("a..b", 1, 2),
        ("a.", 1, 2),
        (".", 0, 1),
        ("a[b", 1, 2),
        ("a[]", 1, 3),
        ("x|a[9-0]", 3, 8),
        ("a{b", 1, 2),
        ("a}", 1, 2),
        ("a]b", 1, 2),
        ("a b", 1, 2),
        ("{a|b}", 2, 3),
    ],
)
def test_errors_point_into_the_pattern(pattern: str, start: int, end: int) -> None:
    with pytest.raises(GlobError) as caught:
        compile_glob(pattern)
    assert (caught.value.start, caught.value.end) == (start, end)


def test_alternatives() -> None:
    assert alternatives("a| {b,c} |[|]") == [("a", 0), ("{b,c}", 3), ("[|]", 10)]


# A slow reading of the same patterns: braces spelt out, components matched one by one.

_SETS = {"[ab]": "ab", "[!a-c]": "!abc"}


def _spelt_out(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    head, _, rest = pattern.partition("{")
    choices, _, tail = rest.partition("}")
    return [head + choice + end for choice, end in product(choices.split(","), _spelt_out(tail))]


def _text_fits(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    for written, members in _SETS.items():
        if pattern.startswith(written):
            fits = bool(text) and (text[0] not in members[1:]) == members.startswith("!")
            fits = fits if members.startswith("!") else bool(text) and text[0] in members
            return fits and _text_fits(pattern[len(written) :], text[1:])
    if pattern[0] == "*":
        return any(_text_fits(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    same = bool(text) and pattern[0] in (text[0], "?")
    return same and _text_fits(pattern[1:], text[1:])


def _path_fits(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern == ["**"]:
        return bool(path)
    if pattern[0] == "**":
        return any(_path_fits(pattern[1:], path[cut:]) for cut in range(len(path) + 1))
    return bool(path) and _text_fits(pattern[0], path[0]) and _path_fits(pattern[1:], path[1:])


def _fits(pattern: str, path: str) -> bool:
    whole = path.split(".")
    for part in pattern.split("|"):
        for plain in _spelt_out(part):
            wanted = plain.removeprefix(".").split(".")
            starts = [0] if plain.startswith(".") else range(len(whole))
            if any(_path_fits(wanted, whole[start:]) for start in starts):
                return True
    return False


paths = st.lists(
    st.text("abqkvx_1", min_size=1, max_size=3) | st.sampled_from(["q_proj", "k_proj"]),
    min_size=1,
    max_size=4,
).map(".".join)


@given(globs, st.lists(paths, min_size=1, max_size=8))
def test_slow_reading_agrees(pattern: str, tried: list[str]) -> None:
    matches = compile_glob(pattern)
    assert [matches(path) for path in tried] == [_fits(pattern, path) for path in tried]


@given(paths, st.data())
def test_a_path_matches_itself_and_its_tails(path: str, data: st.DataObject) -> None:
    components = path.split(".")
    start = data.draw(st.integers(0, len(components) - 1))
    assert compile_glob(".".join(components[start:]))(path)
    assert compile_glob(f".{path}")(path)
    assert not compile_glob(f".{path}")(f"above.{path}")


# Suggestions

MODEL = [
    f"model.layers.{layer}.{name}"
    for layer in range(4)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
]
