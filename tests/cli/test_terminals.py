"""Whatever the commands are run in, they end with an exit code and without a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.cli import main

FULL = Path("/dev/full")
PLAIN = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "NO_COLOR": "1"}


def ran(folder: Path, script: str, **environment: str) -> tuple[int, str]:
    """The exit code of a line of shell in which `$S` is the command, and all it prints."""
    root = Path(__file__).parents[2]
    known = {**os.environ, "S": f"{sys.executable} -m surgery", "PYTHONPATH": str(root)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{{ {script}; }} 2>&1"],
        cwd=folder,
        env=known | environment,
        capture_output=True,
        timeout=100,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    return done.returncode, text


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
def test_a_full_output(folder: Path) -> None:
    _, text = ran(folder, "$S check spec.peft > /dev/full; echo $?; $S --help > /dev/full; echo $?")
    assert [line for line in text.split("\n") if line.isdigit()] == ["1", "1"]
    assert text.count("error[S509]: cannot write the output") == 2


def test_nobody_reads_on(folder: Path) -> None:
    assert ran(folder, "$S methods --json | true")[0] == 141


def test_closed_streams(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "cannot read `-`: stdin is closed" in run("fmt", "-").err
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["check", "spec.peft"]) == 0


def test_a_terminal_of_ascii(folder: Path) -> None:
    (folder / "odd.peft").write_text("on q\n# …\nlet a = é\n", encoding="utf-8")
    code, text = ran(folder, "$S check odd.peft; $S methods ia3_input --json", **PLAIN)
    assert code == 0
    assert text.isascii()
    assert "let a = \\xe9" in text
    assert "IA\u00b3" in json.loads(text[text.index("{") :])["doc"]


@pytest.mark.parametrize("columns", ["0", "1", "7"])
def test_a_narrow_terminal(folder: Path, columns: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    (folder / "odd.peft").write_text("let a = é\n", encoding="utf-8")
    for words in (["--help"], ["check", "--help"], ["check", "spec.peft"], ["methods"]):
        assert main(words) == 0
    assert main(["check", "odd.peft"]) == 1
    assert main(["nonsense"]) == 64
    assert "S102" in capsys.readouterr().err


def test_stopping(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgery.cli.checking.resolve", stopped)
    assert main(["check", "spec.peft"]) == 130


def test_stdin_is_utf8_whatever_the_terminal_is(run: Any, monkeypatch: Any) -> None:
    raw = io.BytesIO("use 'é'".encode("latin-1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="ascii"))
    assert "S510" in run("check", "-").err
    raw = io.BytesIO("# é\nlet a = 1".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="ascii"))
    assert run("fmt", "-").out == "# é\nlet a = 1\n"


def test_files_that_are_no_texts(run: Any, folder: Path) -> None:
    (folder / "bytes.peft").write_bytes(b"\xff\xfe")
    (folder / "one.peft").write_text('use "bytes.peft"')
    (folder / "two.peft").write_text('use "."')
    (folder / "three.peft").write_text('use "a\x00b"')
    ran = run("check", "bytes.peft", "one.peft", "two.peft", "three.peft")
    assert (ran.code, ran.err.count("cannot read")) == (1, 4)
    assert ran.err.count("no text in UTF-8") == 2


def test_formatting_through_a_link_keeps_the_link(run: Any, folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "real" / "a.peft").write_text("let  a=1")
    (folder / "link.peft").symlink_to("real/a.peft")
    assert run("fmt", "link.peft").code == 0
    assert (folder / "link.peft").is_symlink()
    assert (folder / "real" / "a.peft").read_text() == "let a = 1\n"
    assert sorted(p.name for p in (folder / "real").iterdir()) == ["a.peft"]
