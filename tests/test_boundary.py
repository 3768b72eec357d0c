"""What is known of transformers is in one package, and known of one name in one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import surgery
from surgery.huggingface import names

ROOT = Path(surgery.__file__).parent
INSIDE = ROOT / "huggingface"
FILES = sorted(ROOT.rglob("*.py"))
OUTSIDE = [path for path in FILES if INSIDE not in path.parents]

OWN = {
    *(name for known in names.ARGUMENTS.values() for name in known if "_" in name),
    *names.MEMORY_MASKS,
    *(names.CAUSAL, names.FORBIDDEN, names.TARGETS),
    *("config", "input_ids", "decoder_input_ids", "pixel_values", "main_input_name"),
    *("from_pretrained", "save_pretrained", "prepare_inputs_for_generation"),
    *("get_seq_length", "max_cache_len"),
}
"""Names that transformers gave; those of one plain word, as `mask`, others use as well."""


def words(path: Path) -> Iterator[tuple[str, int]]:
    """What a file names: modules it imports, attributes, and strings that are names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((alias.name, line) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", line
        elif isinstance(node, ast.Attribute):
            yield node.attr, line
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Help and errors are sentences, and docstrings, too.
            yield from [(node.value, line)] if re.fullmatch(r"[\w.]+", node.value) else []


def found(path: Path) -> list[str]:
    """The lines of a file that name what is transformers' own."""
    return [
        f"{path.relative_to(ROOT.parent)}:{line}: {word}"
        for word, line in words(path)
        if word in OWN or word.split(".")[0] == "transformers"
    ]


def test_nothing_else_names_what_is_transformers_own() -> None:
    assert [line for path in OUTSIDE for line in found(path)] == []


def test_what_is_looked_for_is_found_inside() -> None:
    """Each name stands in the package, so none of those looked for is one that nobody uses."""
    inside = {word for path in FILES if INSIDE in path.parents for word, _ in words(path)}
    unknown = {name for name in OWN if name not in inside}
    assert not unknown
    assert "transformers" in inside


@pytest.mark.parametrize(
    "module", ["surgery", "surgery.api", "surgery.models", "surgery.graft.apply"]
)
def test_transformers_is_not_imported_with(module: str) -> None:
    code = f"import sys, {module}; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
