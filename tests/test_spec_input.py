"""What is given as a spec is a text, a path or a parsed spec, or an error says what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.language.diagnostics import SurgeryError


class Bytes(os.PathLike[bytes]):
    """A path as bytes."""

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


@pytest.mark.parametrize(
    "spec",
    [None, {}, b"on Linear apply ia3", 3, 2.5, True, ["on"], ("on",), object(), torch.nn.ReLU, int],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_spec(spec: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    for act in (surgery.plan, surgery.apply, surgery.diff):
        with pytest.raises(SurgeryError, match=r"S510.*a spec is a text, a path"):
            act(model, spec)
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"]


def test_paths(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    good = tmp_path / "good.peft"
    good.write_bytes(b"on Linear apply ia3 # \xc3\xa9\r\non Linear apply shift\r")
    for path in (good, str(good), Bytes(good)):
        assert len(surgery.plan(model, path).edits) == 2
    bad = tmp_path / "bad.peft"
    bad.write_bytes(b"on Linear apply ia3 # \xe9")
    for path in (
        bad,
        tmp_path,
        tmp_path / "none.peft",
        "a\0.peft",
        Path("a\0"),
        "x" * 999 + ".peft",
    ):
        with pytest.raises(SurgeryError, match="S510"):
            surgery.plan(model, path)


@pytest.mark.parametrize("selector", ["", " ", "`", "q q", "\ud800"])
def test_selectors(selector: str) -> None:
    with pytest.raises(SurgeryError, match="S1"):
        surgery.select(torch.nn.Linear(2, 2), selector)
