"""Where commands may write: never onto the base model, over other things only with --force."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import surgery
from tests.models import build

SPEC = "on q|v apply lora(r = 2)"


@pytest.fixture
def base(folder: Path) -> Path:
    """A model on disk with an adapter for it, and what is in its folder."""
    model: Any = build("llama")
    model.save_pretrained(folder / "models" / "base")
    model = surgery.apply(surgery.load_model(folder / "models" / "base"), SPEC, seed=0)
    for parameter in surgery.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    surgery.save(model, folder / "adapter")
    return folder / "models" / "base"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def links(folder: Path) -> None:
    (folder / "link").symlink_to("models/base")
    (folder / "around").symlink_to("models")
    (folder / "chain").symlink_to("link")


ONTO = (
    "models/base",
    "models/base/",
    "models/../models/base",
    "./models/./base",
    "link",
    "chain",
    "around/base",
    "models/base/merged",
    "link/new/merged",
    "models",
    "around",
    ".",
)


@pytest.mark.parametrize("where", ONTO)
def test_nothing_is_merged_onto_the_base(where: str, base: Path, folder: Path, run: Any) -> None:
    links(folder)
    before = bytes_of(folder)
    for model in ("models/base", "link", str(base)):
        for force in ((), ("--force",)):
            for words in (
                ("merge", model, "adapter", "-o", where, *force),
                ("apply", model, SPEC, "--merged", "-o", where, *force),
            ):
                ran = run(*words)
                assert ran.code == 1
                assert "error[S534]" in ran.err
                assert "base model" in ran.err
    assert bytes_of(folder) == before
    absolute = run("merge", "models/base", "adapter", "-o", str((folder / where).absolute()))
    assert "error[S534]" in absolute.err


@pytest.mark.parametrize("where", ["models/base", "link", "models/base/it.safetensors"])
def test_no_adapter_is_written_into_the_base(
    where: str, base: Path, folder: Path, run: Any
) -> None:
    links(folder)
    before = bytes_of(folder)
    for command in (("apply", "models/base", SPEC), ("fold", "models/base", "adapter")):
        ran = run(*command, "-o", where, "--force")
        assert (ran.code, "error[S534]" in ran.err) == (1, True)
    assert bytes_of(folder) == before


def test_another_model_is_replaced_only_if_told_to(base: Path, folder: Path, run: Any) -> None:
    other: Any = build("gpt2")
    other.save_pretrained(folder / "other")
    (folder / "other" / "notes").write_text("mine")
    before = bytes_of(folder / "other")
    for words in (
        ("merge", "models/base", "adapter", "-o", "other"),
        ("apply", "models/base", SPEC, "--merged", "-o", "other"),
        ("apply", "models/base", SPEC, "-o", "other"),
    ):
        ran = run(*words)
        assert (ran.code, "error[S534]" in ran.err, "--force" in ran.err) == (1, True, True)
        assert bytes_of(folder / "other") == before
    ran = run("merge", "models/base", "adapter", "-o", "other", "--force")
    assert ran.code == 0, ran.err
    assert type(surgery.load_model(folder / "other")).__name__ == "LlamaForCausalLM"
    assert (folder / "other" / "notes").read_text() == "mine"
    assert not list((folder / "other").glob(".*"))


def test_a_folder_with_anything_in_it_is_not_filled(base: Path, folder: Path, run: Any) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("mine")
    ran = run("merge", "models/base", "adapter", "-o", "full")
    assert "`full` is not empty: it holds `thesis.tex`" in ran.err
    (folder / "empty").mkdir()
    assert run("merge", "models/base", "adapter", "-o", "empty").code == 0
    assert run("merge", "models/base", "adapter", "-o", "deep/er/new").code == 0


def test_an_adapter_is_replaced_only_if_told_to(base: Path, folder: Path, run: Any) -> None:
    before = (folder / "adapter" / "adapter.safetensors").read_bytes()
    for where in ("adapter", "adapter/adapter.safetensors"):
        ran = run("apply", "models/base", SPEC, "-o", where)
        assert "error[S534]" in ran.err
        assert "is there already" in ran.err
    assert (folder / "adapter" / "adapter.safetensors").read_bytes() == before
    assert run("apply", "models/base", SPEC, "-o", "adapter", "--force").code == 0
    assert (folder / "adapter" / "adapter.safetensors").read_bytes() != before
    (folder / "adapter" / "notes").write_text("mine")
    assert run("apply", "models/base", SPEC, "-o", "adapter/two.safetensors").code == 0


def test_a_write_that_fails_leaves_the_other_model_whole(
    base: Path, folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("merge", "models/base", "adapter", "-o", "out").code == 0
    before = bytes_of(folder / "out")
    right, calls = Path.replace, []

    def replace(self: Path, target: Any) -> Any:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return right(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        ran = run("apply", "models/base", "on mlp apply lora", "--merged", "-o", "out", "--force")
        assert "error[S509]" in ran.err or "error[S4" in ran.err
        calls.clear()
        ran = run("apply", "models/base", "on up apply lora(2)", "--merged", "-o", "out", "--force")
    assert "error[S509]" in ran.err
    assert "No space left on device" in ran.err
    assert bytes_of(folder / "out") == before


@pytest.mark.parametrize("where", ["a" * 300, "spec.peft", "spec.peft/out"])
def test_names_that_cannot_be(where: str, base: Path, run: Any) -> None:
    for words in (("merge", "models/base", "adapter"), ("apply", "models/base", SPEC)):
        ran = run(*words, "-o", where)
        assert (ran.code, "error[S509]" in ran.err) == (1, True) or where == "spec.peft"


def test_another_dtype_is_merged_when_asked_for(base: Path, folder: Path, run: Any) -> None:
    surgery.load_model(base).bfloat16().save_pretrained(folder / "half")
    ran = run("merge", "half", "adapter", "-o", "out")
    assert "error[S515]" in ran.err
    ran = run("merge", "half", "adapter", "-o", "out", "--base", "shape")
    assert ran.code == 0, ran.err
    assert "Base: names and shapes of 21 tensors of the base were compared" in ran.out
    assert "float32 in the file, bfloat16 here" in ran.out
    assert run("merge", "half", "adapter", "-o", "out", "--base", "shapes").code == 64


def test_files_of_models_get_the_mode_that_the_umask_leaves(
    base: Path, folder: Path, run: Any
) -> None:
    before = os.umask(0o027)
    try:
        run("merge", "models/base", "adapter", "-o", "out")
        run("apply", "toy:model", "on up|down apply shift", "--merged", "-o", "plain")
    finally:
        os.umask(before)
    for file in (*(folder / "out").iterdir(), *(folder / "plain").iterdir()):
        assert file.stat().st_mode & 0o777 == 0o640
    assert load_file(folder / "plain" / "model.safetensors")
