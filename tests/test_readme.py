"""The README is executed: its Python runs, its specs are read, its tables are what is derived."""

import os
import re
from pathlib import Path

import pytest

from surgery.language import syntax
from surgery.planning.spec import read_spec
from surgery.reports.claims import claims_of
from surgery.rules.library import Definition, prelude

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("spec", blocks("peft"))
def test_specs_are_read(spec: str) -> None:
    assert read_spec(spec).file.items


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    exec(compile(program, str(README), "exec"), {})


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
            r"((?:Li & )?\w[\w-]*(?: et al\.)? \d{4}), (arXiv:\d+\.\d+)",
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


def test_methods_table_is_derived() -> None:
    marker, end = "<!-- methods -->\n", "\n<!-- end -->"
    before, _, rest = TEXT.partition(marker)
    shown, _, after = rest.partition(end)
    if os.environ.get("UPDATE_GOLDEN"):
        README.write_text(before + marker + methods_table() + end + after, encoding="utf-8")
    else:
        assert shown == methods_table()
