"""Each broken sample gives the messages that stand beside it.

`UPDATE_GOLDEN=1 pytest tests/language/test_errors.py` writes them anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from surgery.language.diagnostics import SurgeryError
from surgery.language.parse import parse
from surgery.language.resources import resource

SAMPLES = sorted(resource("grammar", "errors").glob("*.peft"))


def told(sample: Path) -> SurgeryError:
    with pytest.raises(SurgeryError) as caught:
        parse(sample.read_text(encoding="utf-8"), sample.name)
    return caught.value


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_message(sample: Path) -> None:
    message = f"{told(sample)}\n"
    golden = sample.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(message, encoding="utf-8")
    assert message == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_code(sample: Path) -> None:
    """A sample is named after the one code that it gives; `several` gives several."""
    codes = {diagnostic.code for diagnostic in told(sample).diagnostics}
    named = sample.stem.partition("_")[0]
    if sample.stem == "several":
        assert len(codes) > 3
    elif named == "S124":
        assert told(sample).diagnostics[-1].code == named
        assert len(told(sample).diagnostics) == 51
    else:
        assert codes == {named}


def test_there_is_a_message_for_every_sample_and_code() -> None:
    folder = resource("grammar", "errors")
    assert {path.stem for path in folder.glob("*.txt")} == {sample.stem for sample in SAMPLES}
    reference = resource("grammar", "README.md").read_text(encoding="utf-8")
    codes = set(re.findall(r"^\| (S1\d\d) \|", reference, re.MULTILINE))
    assert codes == {sample.stem.partition("_")[0] for sample in SAMPLES} - {"several"}
