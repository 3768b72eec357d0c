"""The reference pages say what the code does: methods, commands, functions and error codes."""

import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import surgery
from surgery.cli.application import application
from surgery.language import syntax
from surgery.reports.claims import claims_of
from surgery.rules.library import Definition, prelude

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"


def matched(definition: Definition) -> str:
    """The operator that a method rewrites."""
    return next(s.operator for s in definition.syntax.body if isinstance(s, syntax.Match))


def methods_table() -> str:
    rows = [
        "| method | at | source | identity at init | merged weight | parameters per layer |",
        "|---|---|---|---|---|---|",
    ]
    rules = prelude()
    for name in sorted(rules.names()):
        definition = rules.find(name)
        assert definition is not None
        claims = claims_of(definition)
        if claims.kind != "method":
            continue
        source = re.search(
            r"((?:Li & )?\w[\w-]*(?: et al\.)? \d{4}), (arXiv:\d+\.\d+|OpenReview \w+)",
            " ".join((claims.doc or "").split()),
        )
        where = f"{source[1]}, {source[2]}" if source else "as `ia3`"
        merged = "—"
        if claims.merge:
            merged = f"`{claims.merge['weight']}`"
            if claims.merge["bias"] != "b":
                merged += f", bias `{claims.merge['bias']}`"
        start = "yes" if claims.is_identity else "no"
        rows.append(
            f"| `{name}` | {matched(definition)} | {where} | {start} | {merged} | {claims.elements} |"
        )
    return "\n".join(rows)


def commands() -> str:
    """The help of each command, as a terminal of 88 columns shows it."""
    runner = CliRunner()

    def shown(*arguments: str) -> str:
        result = runner.invoke(application, [*arguments, "--help"], env={"COLUMNS": "88"})
        assert result.exit_code == 0
        lines = [line.rstrip() for line in result.output.strip().splitlines()]
        return "```\n" + "\n".join(lines).replace("Usage: root", "Usage: surgery") + "\n```"

    names = [command.name for command in application.registered_commands]
    sections = [f"## surgery {name}\n\n{shown(str(name))}" for name in sorted(map(str, names))]
    return "\n\n".join([shown(), *sections])


def functions() -> str:
    """Signature and summary of everything that `surgery` exports."""
    rows: list[str] = []
    for name in surgery.__all__:
        found: Any = getattr(surgery, name)
        doc = inspect.getdoc(found) or ""
        if isinstance(found, type):
            shape = f"class {name}"
        else:
            words = [
                str(p).partition(":")[0] if p.default is p.empty else f"{p.name}={p.default!r}"
                for p in inspect.signature(found).parameters.values()
            ]
            keyword = [
                p.kind is p.KEYWORD_ONLY for p in inspect.signature(found).parameters.values()
            ]
            if any(keyword):
                words.insert(keyword.index(True), "*")
            shape = f"{name}({', '.join(words)})"
        text = (
            doc.replace("``", "`")
            .replace(":func:", "")
            .replace(":class:", "")
            .replace(":meth:", "")
        )
        text = text.partition("\n>>> ")[0].strip()
        rows.append(f"## `{shape}`\n\n{_sections(text)}")
    return "\n\n".join(rows)


def _sections(text: str) -> str:
    """Google-style sections as lists."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Warns):", line):
            lines.append(f"**{line.rstrip(':')}**\n")
        elif re.match(r"    \w[\w.]*: ", line):
            name, _, said = line.strip().partition(": ")
            lines.append(f"- `{name}`: {said}")
        elif line.startswith("    "):
            lines.append(
                f"  {line.strip()}" if lines and lines[-1].startswith(("-", "  ")) else line.strip()
            )
        else:
            lines.append(line)
    return "\n".join(lines).strip()


@pytest.mark.parametrize(
    ("page", "made"),
    [("methods.md", methods_table), ("cli.md", commands), ("python.md", functions)],
)
def test_pages_are_generated(page: str, made: Any) -> None:
    path = PAGES / page
    before, marker, rest = path.read_text(encoding="utf-8").partition("<!-- generated -->\n\n")
    shown, end, after = rest.partition("\n\n<!-- end -->")
    assert marker
    assert end
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(before + marker + made() + end + after, encoding="utf-8")
    else:
        assert shown == made()


def test_every_code_is_explained() -> None:
    """The codes in the source are those of the two pages."""
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "surgery").rglob("*.py"))
    raised = set(re.findall(r'"(S\d{3})"', source))
    texts = [PAGES / "errors.md", ROOT / "grammar" / "README.md"]
    rows = re.findall(
        r"^\| (S\d{3}) \|", "".join(t.read_text("utf-8") for t in texts), re.MULTILINE
    )
    assert raised == set(rows)
