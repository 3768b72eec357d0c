"""The wheel beside no more than what it declares, on every Python of this machine that it names.

An environment is a folder of links to the distributions that are installed here: those in the
closure of the wheel's own requirements, and no other. So a package that is used and not declared
is missed, and nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.running import run

pytestmark = pytest.mark.slow

HERE = f"python{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [name for name in ("python3.11", "python3.12", "python3.13") if name != HERE]

ALONE = """
from importlib.util import find_spec

for name in ABSENT:
    assert find_spec(name) is None, name
"""

TRANSFORMERS = """
import surgery, torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()
ids = torch.arange(8)[None]
before = model(ids).logits
surgery.apply(model, "on q|v apply lora(2)  on attention apply prefix(3)", seed=0)
surgery.save(model, "llama")
adapted = model(ids).logits
surgery.remove(model)
assert torch.equal(model(ids).logits, before)
surgery.load(model, "llama")
assert torch.equal(model(ids).logits, adapted)
"""


TEXTS = """
from pathlib import Path

from surgery.cli.checking import check_file, report
from surgery.language.format import format_text
from surgery.language.source import SourceText

folder = Path(sys.argv[1])
files = [SourceText(str(p), p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.peft"))]
checked = [check_file(source, folder) for source in files]
assert report(checked).endswith("no errors."), report(checked)
assert all(format_text(source.text) == source.text for source in files)
assert "torch" not in sys.modules
"""


def closure(requirements: Iterable[str], without: str = "") -> dict[str, Distribution]:
    """The installed distributions that ``requirements`` lead to, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        )
        name = requirement.name.lower().replace("_", "-")
        if not applies or name in found or name == without:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        assert requirement.specifier.contains(found[name].version, prereleases=True), requirement
        below = [Requirement(text) for text in found[name].requires or ()]
        waiting += [r for r in below if r.marker is None or "extra" not in str(r.marker)]
    return found


def declared(wheel: Path, extra: str = "") -> list[str]:
    """What the wheel requires, and with an extra."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("dist-info/METADATA"))
        metadata = archive.read(name).decode()
    found = [Requirement(text) for text in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    wanted = [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [f"{r.name}{r.specifier}" for r in wanted]


def environment(folder: Path, wheel: Path, distributions: Iterable[Distribution]) -> Path:
    """A folder of packages: the wheel's, and links to all that ``distributions`` installed."""
    packages = folder / "packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for found in distributions:
        tops = {Path(file).parts[0] for file in found.files or () if Path(file).parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    return packages


def python(program: str, packages: Path, *words: str, interpreter: str = sys.executable) -> str:
    """Run a program with no packages but those of a folder, in a folder of its own."""
    start = f"import sys; sys.path.insert(0, {str(packages)!r})\n"
    work = packages.parent / "work"
    work.mkdir(exist_ok=True)
    return run(interpreter, "-I", "-S", "-c", start + program, *words, cwd=work)


def installed(interpreter: str) -> str | None:
    """Where an interpreter is; pyenv's stand-ins on the path fail for all but the chosen one."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/*/bin/{interpreter}"))
    for found in filter(None, [shutil.which(interpreter), *map(str, pyenv)]):
        if subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    return None


def readme(root: Path) -> str:
    text = (root / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))


@pytest.mark.parametrize(
    ("extra", "without"), [("", "numpy"), ("", ""), ("transformers", "")], ids=str
)
def test_the_readmes_program_runs_beside_what_is_declared(
    extra: str, without: str, root: Path, wheel: Path, tmp_path: Path
) -> None:
    wanted = [*declared(wheel, extra), *([] if without else ["numpy"])]
    packages = environment(tmp_path, wheel, closure(wanted, without).values())
    absent = [name for name in (without, "" if extra else "transformers") if name]
    python(f"ABSENT = {absent}\n{ALONE}\n{readme(root)}", packages)
    if extra:
        python(TRANSFORMERS, packages)


def test_everything_imports_beside_what_is_declared(wheel: Path, tmp_path: Path) -> None:
    packages = environment(tmp_path, wheel, closure(declared(wheel), "numpy").values())
    every = """
import importlib, pkgutil, surgery
for found in pkgutil.walk_packages(surgery.__path__, "surgery."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
    python(every, packages)


@pytest.mark.parametrize("interpreter", OTHERS)
def test_texts_are_checked_on_other_pythons(
    interpreter: str, root: Path, wheel: Path, tmp_path: Path
) -> None:
    """The half that needs no torch, which is built for one Python alone."""
    found = installed(interpreter)
    if found is None:
        pytest.skip(f"there is no {interpreter} here")
    packages = environment(tmp_path, wheel, closure(["lark"]).values())
    python(TEXTS, packages, str(root / "rules"), interpreter=found)
