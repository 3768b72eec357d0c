"""Commands that take an exported program, in a `.pt2` file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from tests.cli.toy import model


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy model, exported for any number of ids."""
    ids = torch.randint(0, 40, (2, 5))
    dims = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}}
    exported = torch.export.export(model().eval(), (ids,), dynamic_shapes=dims)
    path = tmp_path_factory.mktemp("programs") / "model.pt2"
    torch.export.save(exported, path)
    return str(path)


def test_a_program_is_adapted_and_saved_with_its_adapter(run: Any, program: str) -> None:
    ran = run("apply", program, "on Linear apply dora(2)  train norm", "-o", "out")
    assert (ran.code, ran.err) == (0, "")
    adapted = surgery.load_model("out/model.pt2")
    again = surgery.load(surgery.load_model(program), "out")
    assert list(surgery.trainable(adapted)) == list(surgery.trainable(again))
    ids = torch.randint(0, 40, (3, 7))
    assert torch.equal(adapted.module()(ids), again.module()(ids))
    base = torch.export.load(program)
    assert torch.equal(surgery.remove(adapted).module()(ids), base.module()(ids))
    assert run("apply", program, "train norm", "-o", "out").code == 1  # something is there


def test_a_merged_program_is_written_whole(run: Any, program: str) -> None:
    assert run("apply", program, "on Linear except head apply lora", "-o", "adapter").code == 0
    ran = run("merge", program, "adapter", "-o", "merged")
    assert (ran.code, ran.err) == (0, "")
    merged, base = surgery.load_model("merged/model.pt2"), torch.export.load(program)
    ids = torch.randint(0, 40, (2, 3))
    torch.testing.assert_close(merged.module()(ids), base.module()(ids))  # LoRA starts as its base
    with pytest.raises(surgery.SurgeryError, match="S512"):
        surgery.remove(merged)


def test_what_commands_say_of_a_program_is_what_they_say_of_its_model(
    run: Any, program: str
) -> None:
    for command in (("diff", "on Linear apply lora(r = 2)  train norm"), ("inspect", "linear")):
        of_model = run(command[0], "toy:model", *command[1:])
        of_program = run(command[0], program, *command[1:])
        assert (of_program.out, of_program.code) == (of_model.out, 0)
    assert run("verify", program, "on Linear except head apply lora").code == 0


def described(
    program: str, path: Path, change: Callable[[bytes], bytes], name: str = "model"
) -> None:
    """A copy of ``program`` at ``path`` whose graph is described otherwise, or called by another name."""
    with zipfile.ZipFile(program) as given, zipfile.ZipFile(path, "w") as made:
        for entry in given.namelist():
            content = given.read(entry)
            if entry.endswith("models/model.json"):
                entry = entry.replace("model.json", f"{name}.json")
                content = change(content)
            made.writestr(entry, content)


def newer(content: bytes) -> bytes:
    known = json.loads(content)
    known["schema_version"]["major"], known["torch_version"] = 99, "9.9.0"
    return json.dumps(known).encode()


DAMAGES: dict[str, tuple[Callable[[str, Path], object], str]] = {
    "no archive": (lambda _, path: path.write_bytes(b"not an archive"), "not a zip file"),
    "cut": (lambda p, path: path.write_bytes(Path(p).read_bytes()[:3000]), "damaged"),
    "tensors": (lambda _, path: torch.save({"a": torch.ones(2)}, path), "there is none in it"),
    "other name": (lambda p, path: described(p, path, bytes, "other"), "it holds other"),
    "newer": (lambda p, path: described(p, path, newer), "written by torch 9.9.0"),
    "operator": (
        lambda p, path: described(p, path, lambda c: c.replace(b"aten.linear", b"aten.latest")),
        "torch.ops.aten.latest",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_torch_cannot_read_is_an_error_that_says_why(
    run: Any, program: str, tmp_path: Path, name: str
) -> None:
    write, reason = DAMAGES[name]
    path = tmp_path / "broken.pt2"
    write(program, path)
    ran = run("inspect", str(path))
    assert ran.code == 1
    assert "S501" in ran.err
    assert "holds no exported program" in " ".join(ran.err.split())
    assert reason in " ".join(ran.err.split())
