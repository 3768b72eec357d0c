"""The page on attention styles shows what is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

from surgery.anatomy.roles import softmaxes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending/attention-style.md").read_text(encoding="utf-8")
SHOWN = re.findall(r'^```python title="(.*?)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)


def test_what_the_page_shows_is_there() -> None:
    assert [name for name, _ in SHOWN] == [
        *["surgery/anatomy/roles/softmaxes.py"] * 2,
        "tests/graft/test_written_softmax.py",
    ]
    for name, text in SHOWN:
        assert text in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_style_is_in_one_file() -> None:
    """Nothing else of the package names a form, so the page's change is the whole of it."""
    forms = [type(form).__name__ for form in softmaxes.FORMS.values()]
    assert len(forms) == len(set(forms)) >= 3
    home = Path(softmaxes.__file__)
    others = [path for path in (ROOT / "surgery").rglob("*.py") if path != home]
    for path in others:
        source = path.read_text(encoding="utf-8")
        assert not [form for form in forms if form in source], path


def test_every_member_of_a_form_is_explained() -> None:
    own = [name for name in vars(softmaxes.SoftmaxForm) if not name.startswith("_")]
    for name in [*own, *softmaxes.SoftmaxForm.__annotations__]:
        assert f"| `{name}` |" in PAGE
