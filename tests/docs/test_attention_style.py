"""The page on attention styles shows what is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

from surgery.anatomy.roles import softmaxes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending/attention-style.md").read_text(encoding="utf-8")
SHOWN = re.findall(r'^```(?:python|text) title="(.*?)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)


def test_what_the_page_shows_is_there() -> None:
    assert [name for name, _ in SHOWN] == [
        "surgery/anatomy/roles/softmaxes.py",
        "tests/graft/test_written_softmax.py",
    ]
    for name, text in SHOWN:
        assert text in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_style_is_in_one_file() -> None:
    """No two rows are of one function, and nothing else of the package makes one."""
    forms = softmaxes.FORMS
    assert len(forms) >= 5
    assert all(name == form.function for name, form in forms.items())
    home = Path(softmaxes.__file__)
    others = [path for path in (ROOT / "surgery").rglob("*.py") if path != home]
    assert not [p for p in others if "SoftmaxForm(" in p.read_text(encoding="utf-8")]


def test_every_member_of_a_form_is_explained() -> None:
    own = [name for name in vars(softmaxes.SoftmaxForm) if not name.startswith("_")]
    for name in [*own, *softmaxes.SoftmaxForm.__annotations__]:
        assert f"| `{name}` |" in PAGE
