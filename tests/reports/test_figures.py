"""Numbers and folded paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.reports.figures import aligned, families, millions, operations, percent


@pytest.mark.parametrize(
    ("elements", "text"),
    [(0, "0"), (9_999, "9,999"), (10_000, "0.01 M"), (134_515_008, "134.52 M"), (7e9, "7.00 B")],
)
def test_millions(elements: int, text: str):
    assert millions(elements) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0 %"),
        (0, 0, "0 %"),
        (1, 4, "25.00 %"),
        (17, 10_000, "0.17 %"),
        (1, 10**6, "0.0001 %"),
    ],
)
def test_percent(part: int, whole: int, text: str):
    assert percent(part, whole) == text


def test_operations():
    shown = [operations(n) for n in (12, 1_500, 2_000_000, 3 * 10**9)]
    assert shown == ["12 FLOPs", "1.5 kFLOPs", "2.0 MFLOPs", "3.0 GFLOPs"]


@pytest.mark.parametrize(
    ("paths", "patterns"),
    [
        (["a.0.q", "a.1.q", "a.2.q"], ["a.{0…2}.q"]),
        (["a.0.q", "a.0.k", "a.2.q"], ["a.{0,2}.q", "a.0.k"]),
        (["0", "1"], ["{0,1}"]),
        (["l.0[up..down]", "l.1[up..down]"], ["l.{0,1}[up..down]"]),
        (["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1"], ["a.{0,1}.b.{0,1}"]),
        (["a.0.b.0", "a.1.b.1"], ["a.*.b.*"]),
        (["conv1", "conv2"], ["conv1", "conv2"]),
        ([f"x.{2 * i}" for i in range(9)], ["x.{0,…,16}"]),
        ([""], [""]),
    ],
)
def test_families(paths: list[str], patterns: list[str]):
    assert [str(family) for family in families(paths)] == patterns


@given(st.lists(st.from_regex(r"[a-c](\.[0-9a-b]){0,3}", fullmatch=True)))
def test_families_hold_every_path_once(paths: list[str]):
    held = [member for family in families(paths) for member in family.members]
    assert sorted(held) == sorted(set(paths))


def test_a_wide_cell_does_not_push_the_others_out():
    assert aligned([("a", "x"), ("b" * 9, "y")], widest=4) == ["a   x", "b" * 9 + "   y"]
