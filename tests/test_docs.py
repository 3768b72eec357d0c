"""The documents are executed: their Python runs and prints what they show, their specs are read."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from surgery.planning.spec import read_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


SPECS = [
    pytest.param(text, id=f"{named(page)}-{i}")
    for page in PAGES
    for i, (language, text) in enumerate(blocks(page))
    if language == "peft"
]
PROGRAMS = [p for p in PAGES if any(language == "python" for language, _ in blocks(p))]


@pytest.mark.parametrize("spec", SPECS)
def test_specs_are_read(spec: str) -> None:
    assert read_spec(spec).file.items


@pytest.mark.parametrize("page", PROGRAMS, ids=named)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page are one program; a `text` block shows what the one before it printed."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = ""
    for language, text in blocks(page):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, str(page), "exec"), names)
            printed = out.getvalue()
        elif language == "text":
            assert printed == text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text("utf-8"))}
    assert {p for p in PAGES if p.parent != ROOT} - linked - {index} == set()


SHOWN = [
    pytest.param(*text.split("\n", 1), id=f"{named(page)}-{i}")
    for page in PAGES
    for i, (language, text) in enumerate(blocks(page))
    if language == "py"
]


@pytest.mark.parametrize(("where", "code"), SHOWN)
def test_code_that_is_shown_is_in_the_file_it_names(where: str, code: str) -> None:
    """A `py` block begins with `# path`, and the rest of it stands there word for word."""
    assert code in (ROOT / where.removeprefix("# ")).read_text(encoding="utf-8")
