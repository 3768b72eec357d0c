"""docs/reference/json.md has every key that a command prints, with its types, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgery.reports.data import VERSION

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
ROW = re.compile(r"^\| `([\w.\[\] ]+)` \| ([\w `]+) \| .+ \|$", re.MULTILINE)
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}

FILES = {
    "rule.peft": 'method twice(r = 1) {\n  "Doubled."\n  match y[*, n] = linear(x, W, b?)\n'
    "  require r < n\n  param l[n] = 2\n  param frozen shared z[n] = 0\n  y = l * y + z\n}\n"
    "method bent() {\n  match y[*, n] = linear(x, W, b?)\n  param c[n] = 0\n  y += relu(y) * c\n}\n",
    "bad.peft": "on q\ntrain up bias\n",
    "odd.py": "from torch import nn\n\n\nclass Twin(nn.Sequential):\n"
    "    def __init__(self):\n        one = nn.Linear(4, 4)\n"
    "        super().__init__(one, nn.Tanh(), one, nn.Conv1d(5, 5, 1))\n\n\n"
    "class Idle(nn.Module):\n"
    "    def __init__(self):\n        super().__init__()\n"
    "        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)\n"
    "    def forward(self, x):\n        return self.one(x)\n",
}
TWICE = "on up apply lora(2); on up except `nowhere` apply ia3"
SCENARIOS: dict[str, list[tuple[str, ...]]] = {
    "diff MODEL SPEC": [
        ("diff", "toy:model", "spec.peft"),
        ("diff", "toy:model", TWICE),
        ("diff", "odd:Twin", "on Linear apply vera(2)"),
        ("diff", "odd:Idle", "on Linear apply vera(2)"),
    ],
    "diff MODEL SPEC SPEC2": [
        ("diff", "toy:model", "spec.peft", "on Linear apply lora(r = 4); train norm|bias"),
        ("diff", "toy:model", "train norm", "train bias"),
        ("diff", "odd:Twin", "on `0` apply lora(2)", "on `0` apply lora(3)"),
    ],
    "inspect": [
        ("inspect", "toy:model"),
        ("inspect", "toy:closed"),
        ("inspect", "toy:model", "up except `nowhere`"),
        ("inspect", "odd:Twin", "`0`"),
    ],
    "explain": [("explain", "toy:model", "layers.1.up", "spec.peft")],
    "verify": [
        ("verify", "toy:model", "spec.peft"),
        ("verify", "toy:model", TWICE),
        ("verify", "odd:Idle", "on Linear apply lora(2)"),
    ],
    "check": [("check", "spec.peft", "rule.peft"), ("check", "bad.peft", "none.peft")],
    "methods": [("methods",)],
    "methods NAME": [("methods", name) for name in ("lora", "gated", "adapter", "vera", "unipelt")],
}


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The path of each value, `entries[].sites[]`, with its type; lists and objects are no values."""
    if isinstance(data, dict):
        for key, value in data.items():  # pyright: ignore[reportUnknownVariableType]
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(data, list):
        for value in data:  # pyright: ignore[reportUnknownVariableType]
            yield from leaves(value, f"{path}[]")
    else:
        # The children of a module are described as it is.
        yield re.sub(r"^tree(\.children\[\])+", "tree", path), TYPES[type(data)]


def rows(heading: str) -> list[tuple[str, str]]:
    """The keys of a section, with their types."""
    text = PAGE.read_text(encoding="utf-8")
    return ROW.findall(re.split(r"\n##", text.partition(f"\n{heading}\n")[2])[0])


def documented(heading: str, inside: str = "") -> dict[str, set[str]]:
    """The types of each value that a section names, with those of the objects in it."""
    found: dict[str, set[str]] = {}
    for path, types in rows(heading):
        for type_ in types.split(" or "):
            if not type_.startswith("`"):
                found.setdefault(path, set()).add(type_)
            elif type_ != inside:
                for name, known in documented(f"### {type_}", type_).items():
                    found.setdefault(f"{path}.{name}", set()).update(known)
    return found


@pytest.mark.parametrize("section", SCENARIOS)
def test_every_key_is_documented(section: str, run: Any, folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    seen: dict[str, set[str]] = {}
    for words in SCENARIOS[section]:
        for path, type_ in leaves(json.loads(run(*words, "--json").out)):
            seen.setdefault(path, set()).add(type_)
    known = documented(f"## `{section}`")
    if section == "methods NAME":
        known |= documented("### `definition`")
    assert seen.keys() - known.keys() == set()
    assert [p for p in known.keys() - seen.keys() if known[p] != {"null"}] == []
    for path, types in seen.items():
        # A null is said also where these models and specs show none.
        assert types <= known[path] <= types | {"null"}, path


def test_the_version_is_documented() -> None:
    assert f"`version` is {VERSION}" in PAGE.read_text(encoding="utf-8")
