"""The documents are executed: their Python runs and prints what they show, their specs are read."""

from __future__ import annotations

import contextlib
import io
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from surgery.planning.spec import read_spec

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
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
    docs = {p for p in PAGES if p.is_relative_to(index.parent)}
    assert docs - linked - {index} == set()


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


GLOSSARY = (ROOT / "docs" / "glossary.md").read_text("utf-8")
TERMS = re.findall(r"^\*\*([\w ]+)\.\*\*", GLOSSARY, re.MULTILINE)
TEACHING = [
    ROOT / "grammar" / "README.md",
    *(p for p in PAGES if p.name in {"design.md", "json.md"}),
    *(p for p in PAGES if p.parent.name in {"explanation", "extending", "tutorial"}),
]


@pytest.mark.parametrize("page", TEACHING, ids=named)
def test_terms_are_in_the_glossary(page: Path) -> None:
    """A term is set in italics where a page introduces it; capitals begin what is merely stressed."""
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    introduced = re.findall(r"(?<![*\w])\*([a-z]+(?: [a-z]+)?)\*(?![*\w])", prose)
    known = {word for term in TERMS for word in (term, f"{term}s", f"{term}ed", *term.split()[-1:])}
    assert [word for word in introduced if word not in known] == []


def test_the_glossary_is_in_order_and_of_use() -> None:
    assert sorted(TERMS) == TERMS
    others = "\n".join(
        p.read_text("utf-8") for p in [*PAGES, TEACHING[0]] if p.name != "glossary.md"
    )
    assert [term for term in TERMS if not re.search(rf"\b{term}", others, re.IGNORECASE)] == []


def test_names_in_the_glossary_are_where_it_says() -> None:
    names = re.findall(r"`(\w+)` \(`([\w/]+\.py)`\)", GLOSSARY)
    assert names
    for name, file in names:
        assert f"class {name}" in (ROOT / "surgery" / file).read_text("utf-8"), name
    source = "".join(p.read_text("utf-8") for p in (ROOT / "surgery").rglob("*.py"))
    code = GLOSSARY.partition("## Names in the code")[2]
    mentioned = set(re.findall(r"`([A-Z]\w+)`", code))
    assert [
        name for name in mentioned if not re.search(rf"^class {name}\b", source, re.MULTILINE)
    ] == []


def test_every_benchmark_is_described() -> None:
    """The table has the benchmarks that the menu has, and programs of their own are modules."""
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(NAMES)
    for module in re.findall(r"^\| `python -m ([\w.]+)", text, re.MULTILINE):
        assert find_spec(module), module
