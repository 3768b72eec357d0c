"""The wheel, installed alone in a fresh environment, does the main job from an empty directory."""

from __future__ import annotations

import os
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.running import run

pytestmark = pytest.mark.slow

TOY = """
from torch import nn


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that has the wheel, and this one's packages behind it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    base = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", base))
    scripts = Path(sysconfig.get_path("scripts", "venv", base))
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "--no-input")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    # A path file adds a folder without reading the path files in it: an editable checkout that is
    # installed there stays out of reach.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "spec.peft").write_text("on Linear apply lora(r = 2)\n")
    return tmp_path


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_grammar_the_rules_and_the_types_marker(root: Path, wheel: Path):
    names = set(contents(wheel))
    assert {
        "surgery/data/grammar/peft.lark",
        "surgery/data/grammar/peft.jsonl",
        "surgery/py.typed",
    } <= names
    rules = {f"surgery/data/rules/{file.name}" for file in (root / "rules").glob("*.peft")}
    assert rules
    assert rules <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"surgery"}


def test_source_archive_builds_the_same_wheel_as_the_checkout(
    root: Path, wheel: Path, tmp_path: Path
):
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel")
    run(*build, "--outdir", tmp_path, root, cwd=tmp_path)
    (direct,) = tmp_path.glob("*.whl")
    assert contents(direct) == contents(wheel)


def test_source_archive_holds_no_build_products(built: Path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    assert any(name.endswith("/grammar/peft.lark") for name in names)
    assert not [n for n in names if "__pycache__" in n or "/.venv" in n or n.endswith(".pyc")]


def test_installed_package_is_the_wheels(installed: Path, empty: Path):
    where = run(installed / "python", "-c", "import surgery; print(surgery.__file__)", cwd=empty)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_installed_command_says_its_version(installed: Path, empty: Path, root: Path):
    version = run(installed / "surgery", "--version", cwd=empty)
    stated = (root / "pyproject.toml").read_text().partition('version = "')[2].partition('"')[0]
    assert stated in version


def test_installed_command_checks_a_spec(installed: Path, empty: Path):
    run(installed / "surgery", "check", "spec.peft", cwd=empty)


def test_installed_command_applies_a_spec_to_a_model(installed: Path, empty: Path):
    run(installed / "surgery", "apply", "toy:model", "spec.peft", "-o", "out", cwd=empty)
    assert (empty / "out" / "adapter.safetensors").stat().st_size > 0


def test_installed_command_draws_a_model(installed: Path, empty: Path):
    words = ("diff", "toy:model", "spec.peft", "--format", "html")
    page = run(installed / "surgery", *words, cwd=empty)
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("lora(r = 2)") == 2
