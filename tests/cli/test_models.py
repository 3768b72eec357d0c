"""Commands that take a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import surgery


def test_diff(run: Any, snapshot: Any):
    assert str(run("diff", "toy:model", "spec.peft")) == snapshot


def test_diff_as_markdown(run: Any, snapshot: Any):
    assert str(run("diff", "toy:model", "spec.peft", "--format", "markdown")) == snapshot


def test_diff_as_json(run: Any, snapshot: Any):
    ran = run("diff", "toy:model", "spec.peft", "--json")
    found = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert found.pop("base")
    assert found.pop("fingerprint")
    assert found == snapshot
    assert run("diff", "toy:model", "spec.peft", "--format", "json").out == ran.out


@pytest.mark.parametrize(
    "words",
    [
        ("diff", "toy:model", "spec.peft"),
        ("diff", "toy:model", "spec.peft", "train norm"),
        ("inspect", "toy:model"),
        ("inspect", "toy:model", "up|down"),
    ],
    ids=" ".join,
)
def test_models_are_drawn(run: Any, words: tuple[str, ...]):
    page, graph = (run(*words, "--format", form) for form in ("html", "dot"))
    assert (page.code, page.err) == (graph.code, graph.err) == (0, "")
    assert page.out.startswith("<!DOCTYPE html>\n")
    assert page.out.endswith("</html>\n")
    assert graph.out.startswith("digraph surgery {\n")
    assert graph.out.endswith("\n}\n")
    assert "Language" in page.out
    assert "Language" in graph.out


@pytest.mark.parametrize("words", [("diff", "toy:model", "spec.peft"), ("inspect", "toy:model")])
@pytest.mark.parametrize("form", ["text", "dot", "html", "json"])
def test_json_is_short_for_a_format(run: Any, words: tuple[str, ...], form: str):
    """Two formats at once are a mistake, unless they are one."""
    ran = run(*words, "--json", "--format", form)
    if form == "json":
        assert ran == run(*words, "--json") == run(*words, "--format", "json")
    else:
        assert (ran.code, ran.out) == (64, "")
        assert f"`--json` contradicts `--format {form}`" in ran.err


def test_diff_of_two_specs(run: Any, snapshot: Any):
    other = "on Linear apply lora(r = 4); train norm|bias"
    assert str(run("diff", "toy:model", "spec.peft", other)) == snapshot


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("toy:model", "spec.peft"), 0),
        (("toy:model", "spec.peft", "--exit-code"), 2),
        (("toy:model", "", "--exit-code"), 0),
        (("toy:model", "spec.peft", "spec.peft", "--exit-code"), 0),
        (("toy:model", "spec.peft", "train bias", "--exit-code"), 2),
        (("toy:model", "on foo apply lora", "--exit-code"), 1),
        (("toy:model",), 64),
        (("toy:model", "spec.peft", "--format", "latin"), 64),
    ],
)
def test_diff_exits_with(run: Any, words: tuple[str, ...], code: int):
    assert run("diff", *words).code == code


def test_inspect(run: Any, snapshot: Any):
    assert str(run("inspect", "toy:model")) == snapshot


def test_inspect_of_a_model_that_does_not_run(run: Any, snapshot: Any):
    assert str(run("inspect", "toy:closed")) == snapshot


def test_inspect_a_selector(run: Any, snapshot: Any):
    assert str(run("inspect", "toy:model", "up|down in layer[1:]")) == snapshot


def test_inspect_as_json(run: Any):
    tree = json.loads(run("inspect", "toy:model", "--json").out)["tree"]
    assert tree["kind"] == "Language"
    layers = tree["children"][1]["children"]
    assert [layer["names"] for layer in layers] == [["0", "1", "2"]]


def test_explain(run: Any, snapshot: Any):
    spec = (
        "on up in layer[1:] apply lora(r = 2); on `up`|down except `layers.1.**` apply ia3\n"
        "on down apply lora; on up where index < 1 apply dora(r = 99); train bias"
    )
    assert str(run("explain", "toy:model", "layers.1.up", spec)) == snapshot
    assert str(run("explain", "toy:model", "layers.0.up", spec)) == snapshot


def test_explain_at_a_region(run: Any, snapshot: Any):
    assert str(run("explain", "toy:model", "layers.0[up..down]", "spec.peft")) == snapshot


def test_explain_nowhere(run: Any):
    ran = run("explain", "toy:model", "layers.7.up", "spec.peft")
    assert ran.code == 1
    assert "did you mean `layers.2.up`?" in ran.err


def test_verify(run: Any, snapshot: Any):
    ran = run("verify", "toy:model", "spec.peft")
    figures = r"\d\.\de[-+]\d+ \([^)]*\)|\d\.\de[-+]\d+|[\d,]+(?= bytes)"
    assert re.sub(figures, "#", str(ran)) == snapshot
    found = json.loads(run("verify", "toy:model", "spec.peft", "--json").out)
    assert found["ok"]


def test_verify_exits_with_1_where_a_promise_breaks(run: Any):
    ran = run("verify", "toy:model", "spec.peft", "--tolerance", "0")
    assert ran.code == 1
    assert "Failed: merged = adapted." in ran.out


def test_apply_saves_an_adapter(run: Any, folder: Path, snapshot: Any):
    ran = run("apply", "toy:model", "spec.peft", "-o", "out", "--seed", "3")
    assert re.sub(r"[\d,.]+ (bytes|MB)", "# bytes", str(ran)) == snapshot
    model = surgery.load_model("toy:model")
    surgery.load(model, folder / "out")
    same = surgery.apply(surgery.load_model("toy:model"), folder / "spec.peft", seed=3)
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids), same(ids))


def test_apply_is_the_same_twice(run: Any, folder: Path):
    run("apply", "toy:model", "spec.peft", "-o", "one")
    run("apply", "toy:model", "spec.peft", "-o", "two")
    first, second = ((folder / f / "adapter.safetensors").read_bytes() for f in ("one", "two"))
    assert first == second


def test_apply_merged_writes_the_whole_model(run: Any, folder: Path):
    ran = run("apply", "toy:model", "on up|down apply shift", "-o", "out", "--merged")
    assert ran.code == 0
    assert "Merged 6 adapters into 6 layers." in ran.out
    written = load_file(folder / "out" / "model.safetensors")
    state = surgery.load_model("toy:model").state_dict()
    assert set(written) <= set(state)
    assert torch.equal(written["layers.0.up.weight"], state["layers.0.up.weight"])


def test_apply_merged_needs_all_to_merge(run: Any, folder: Path):
    ran = run("apply", "toy:model", "spec.peft", "-o", "out", "--merged")
    assert ran.code == 1
    assert "error[S517]" in ran.err
    assert not (folder / "out").exists()


def test_merge(run: Any, folder: Path):
    spec = "on up|down apply lora(r = 2)"
    model = surgery.apply(surgery.load_model("toy:model"), spec, seed=0)
    for parameter in surgery.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    surgery.save(model, folder / "adapter")
    ran = run("merge", "toy:model", "adapter", "-o", "whole")
    assert ran.code == 0
    merged = surgery.load_model("toy:model")
    merged.load_state_dict(load_file(folder / "whole" / "model.safetensors"), strict=False)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(merged(ids), model(ids))
    assert not torch.allclose(merged(ids), surgery.load_model("toy:model")(ids))


@pytest.mark.parametrize(
    "words",
    [
        ("diff", "toy:modle", "spec.peft"),
        ("diff", "toy:words", "spec.peft"),
        ("diff", "toy:model", "spce.peft"),
        ("diff", "toy:model", "on Liner apply lora; on Linear apply lora(r = 99)"),
        ("inspect", "toy:model", "up in layer[9]"),
        ("merge", "toy:model", "nowhere", "-o", "out"),
        ("chek", "spec.peft"),
    ],
    ids=" ".join,
)
def test_errors(run: Any, words: tuple[str, ...], snapshot: Any):
    assert str(run(*words)) == snapshot


def test_fold(run: Any, folder: Path):
    (folder / "llamas.py").write_text(
        "from tests.models import build\n\n\ndef model():\n    return build('llama')\n"
    )
    spec = "on attention apply prefix_mlp(2, m = 64)"
    assert run("apply", "llamas:model", spec, "-o", "whole").code == 0
    ran = run("fold", "llamas:model", "whole", "-o", "folded")
    assert (ran.code, ran.err) == (0, "")
    assert "Folded 2 adapters" in ran.out
    assert set(load_file(folder / "folded" / "adapter.safetensors")) == {
        f"model.layers.{layer}.self_attn.prefix_mlp.folded{part}"
        for layer in (0, 1)
        for part in (0, 1)
    }
    assert run("fold", "llamas:model", "folded", "-o", "again").code == 1


def test_inputs_are_given_by_name(run: Any, folder: Path):
    toy = folder / "toy.py"
    toy.write_text(
        f"{toy.read_text()}\n\ndef made():\n    torch.manual_seed(0)\n    return closed()\n\n\ndef inputs():\n"
        "    return {'a': torch.ones(2, 4), 'b': torch.ones(4), 'c': {'d': torch.ones(4)}}\n"
    )
    spec = "on linear apply lora(r = 2)"
    for command in (("diff",), ("apply", "-o", "out"), ("verify",)):
        words = (command[0], "toy:made", spec, *command[1:])
        assert run(*words).code == 1
        given = run(*words, "--inputs", "toy:inputs")
        assert (given.code, given.err) == (0, "")
    assert run("merge", "toy:made", "out", "-o", "whole", "--inputs", "toy:inputs").code == 0
    assert "linear" in run("inspect", "toy:made", "linear", "--inputs", "toy:inputs").out
    assert "did you mean" in run("diff", "toy:made", spec, "--inputs", "toy:input").err
    assert "S501" in run("diff", "toy:made", spec, "--inputs", "inputs.pt").err


def test_apply_and_verify_tell_the_warnings_of_a_plan(run: Any):
    spec = "on up except `lm_head` apply lora(r = 2)"
    for words in (("apply", "toy:model", spec, "-o", "out"), ("verify", "toy:model", spec)):
        ran = run(*words)
        assert ran.code == 0
        assert ran.err.count("warning[S302]") == 1
