"""`check`, `fmt` and `methods`."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.rules.library import prelude


def test_check_says_what_is_proved(run: Any, folder: Path, snapshot: Any):
    (folder / "rule.peft").write_text(
        'method twice() {\n  "Doubled."\n  match y[*, n] = linear(x, W, b?)\n'
        "  param l[n] = 2\n  y = l * y\n}\nmethod bent() {\n  match y[*, n] = linear(x, W, b?)\n"
        "  param c[n] = 0\n  y += relu(y) * c\n}\n"
    )
    assert str(run("check", ".")) == snapshot


def test_check_reports_every_error_of_every_file(run: Any, folder: Path, snapshot: Any):
    (folder / "one.peft").write_text("on `q apply lora\n")
    (folder / "two.peft").write_text("on q apply loar\non k apply lora(q = 2)\n")
    (folder / "rule.peft").write_text(
        "method m() {\n  match y[*, n] = linear(x[*, m], W, b?)\n  param A[m] = 0\n  y += A\n}\n"
    )
    assert str(run("check", "one.peft", "two.peft", "rule.peft", "spec.peft")) == snapshot


def test_check_as_json(run: Any, folder: Path):
    (folder / "bad.peft").write_text("on q\n")
    ran = run("check", "spec.peft", "bad.peft", "--json")
    found = json.loads(ran.out)
    assert (ran.code, ran.err) == (1, "")
    assert [f["errors"] for f in found["files"]] == [0, 1]
    assert found["errors"][0]["places"][0]["file"] == "bad.peft"
    first = found["files"][0]["statements"][0]
    assert first["merge"] == {"weight": "W + (B @ A)", "bias": "b"}


def test_check_of_what_is_not_there(run: Any, folder: Path):
    assert run("check", "nowhere.peft").code == 1
    (folder / "empty").mkdir()
    ran = run("check", "empty")
    assert ran.code == 1
    assert "no .peft files" in ran.err


def test_check_reads_stdin(run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("on q apply loar"))
    ran = run("check", "-")
    assert ran.code == 1
    assert "<stdin>:1:12" in ran.err


def test_every_rule_of_the_package_holds(run: Any, root: Path, folder: Path):
    shutil.copytree(root / "rules", folder / "rules")
    ran = run("check", "rules", "--json")
    found = json.loads(ran.out)
    names = {d["name"] for f in found["files"] for d in f["definitions"]}
    assert ran.code == 0
    assert names == set(prelude().names())


UGLY = "on   q apply   lora( r=4 )# why\n"
NEAT = "on q apply lora(r = 4)  # why\n"


def test_fmt_writes_in_place_once(run: Any, folder: Path):
    file = folder / "ugly.peft"
    file.write_text(UGLY)
    assert run("fmt", "ugly.peft").out == "changed ugly.peft\n"
    assert file.read_text() == NEAT
    again = run("fmt", "ugly.peft")
    assert (again.code, again.out) == (0, "")
    assert sorted(p.name for p in folder.iterdir()) == ["spec.peft", "toy.py", "ugly.peft"]


def test_fmt_check_writes_nothing(run: Any, folder: Path):
    file = folder / "ugly.peft"
    file.write_text(UGLY)
    ran = run("fmt", "--check", ".")
    assert (ran.code, ran.out) == (1, "would change ugly.peft\n")
    assert file.read_text() == UGLY


def test_fmt_diff(run: Any, folder: Path, snapshot: Any):
    (folder / "ugly.peft").write_text(UGLY)
    assert str(run("fmt", "--diff", "ugly.peft")) == snapshot
    assert (folder / "ugly.peft").read_text() == UGLY


def test_fmt_of_stdin_goes_to_stdout(run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(UGLY))
    assert run("fmt", "-").out == NEAT


def test_fmt_leaves_what_it_cannot_read(run: Any, folder: Path):
    (folder / "bad.peft").write_text("on   `q apply lora\n")
    (folder / "ugly.peft").write_text(UGLY)
    ran = run("fmt", "bad.peft", "ugly.peft")
    assert ran.code == 1
    assert "error[S103]" in ran.err
    assert (folder / "bad.peft").read_text() == "on   `q apply lora\n"
    assert (folder / "ugly.peft").read_text() == NEAT


def test_fmt_keeps_no_foreign_line_ends(run: Any, folder: Path):
    (folder / "ugly.peft").write_bytes(b"freeze all\r\n")
    assert run("fmt", "--check", "ugly.peft").code == 1
    run("fmt", "ugly.peft")
    assert (folder / "ugly.peft").read_bytes() == b"freeze all\n"


def test_one_method(run: Any, snapshot: Any):
    assert str(run("methods", "vera")) == snapshot


def test_one_verb(run: Any, snapshot: Any):
    assert str(run("methods", "gated")) == snapshot


def test_all_methods(run: Any):
    listed = run("methods").out
    assert all(f"  {name}" in listed for name in prelude().names())
    data = json.loads(run("methods", "--json").out)
    lora = next(d for d in data if d["name"] == "lora")
    assert lora["elements"] == "m·r + n·r"
    assert lora["is_identity"]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_list_of_methods_fits(run: Any, width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    names = r"^  \w+\(.*\)$"
    lines = [line for line in run("methods").out.splitlines() if not re.match(names, line)]
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    assert "with a scale of 4, as for generation" in said


def test_no_such_method(run: Any):
    ran = run("methods", "loar")
    assert ran.code == 1
    assert "did you mean `lora`?" in ran.err
