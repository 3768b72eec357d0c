"""Specs that read well and mean nothing: each has the message it must give beside it.

``UPDATE_GOLDEN=1 pytest tests/rules/test_errors.py`` writes the messages anew, to be reviewed.
"""

import os
from pathlib import Path

import pytest

import surgery
from surgery.language.parse import parse
from surgery.language.source import SourceText

SAMPLES = sorted((Path(__file__).parent / "errors").glob("*.peft"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.stem)
def test_error(sample: Path) -> None:
    source = SourceText(sample.name, sample.read_text(encoding="utf-8"))
    with pytest.raises(surgery.SurgeryError) as caught:
        surgery.read_spec(parse(source))
    message = f"{caught.value}\n"
    golden = sample.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(message, encoding="utf-8")
    assert message == golden.read_text(encoding="utf-8")
    assert all(d.labels for d in caught.value.diagnostics)
