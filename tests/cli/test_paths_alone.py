"""`check` and `fmt` of paths alone start without Typer, and do what Typer would have them do."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surgery.cli

TEXTS = {
    "good.peft": "on q apply lora(4)\n",
    "loose.peft": "on   q apply   lora(r=4)   # a remark\n",
    "rule.peft": "method m() {\n  match y[*, n] = linear(x, W, b?)\n  param l[n] = 1\n  y = l * y\n}\n",
    "broken.peft": "on q\n",
    "unknown.peft": "on q apply loar\n",
}
WORDS = (
    *TEXTS,
    "-",
    "",
    ".",
    "nowhere.peft",
    "a\0b",
    "--json",
    "--check",
    "--diff",
    "--",
    "-h",
    "-x",
)


def ended(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str, dict[str, str]]:
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    sys.stdin = io.StringIO("on  q apply lora\n")
    code = surgery.cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err, {file.name: file.read_text() for file in folder.iterdir()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(("check", "fmt")), st.lists(st.sampled_from(WORDS), max_size=4))
def test_both_ways_end_alike(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
):
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "stdin", sys.stdin)
        found = ended([command, *words], tmp_path, capsys)
        patch.setattr(surgery.cli, "_may_mean_more", lambda _: True)
        assert ended([command, *words], tmp_path, capsys) == found


@pytest.mark.parametrize("word", ["rules/*.peft", "~/a.peft", "$HOME", "a?.peft", "[ab].peft"])
def test_windows_leaves_patterns_to_typer(word: str, monkeypatch: pytest.MonkeyPatch):
    tell: Any = surgery.cli._may_mean_more
    assert not tell(word)
    monkeypatch.setattr("surgery.cli.os.name", "nt")
    assert tell(word)
    assert not tell("a.peft")
