"""What is in the file of a saved adapter: files of earlier versions, the schema, the base that it needs."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery.graft.adapter_file import VERSION
from surgery.planning import plan as planning
from surgery.planning.plan import Plan, SavedPlan
from tests.graft.damaging import Parts, parts, refused, state
from tests.graft.saved_models import (
    FOLDER,
    SAVED,
    Saved,
    classifier,
    fill,
    stack,
    stack_adapted,
)

READ = [f"version-{VERSION}-{name}" for name in SAVED]


@pytest.mark.parametrize("name", READ)
def test_a_file_that_this_version_wrote_is_read(name: str) -> None:
    saved: Saved = SAVED[name.rpartition("-")[2]]
    model, expected = saved.base(), saved.adapted()
    before, plain = state(model)[0], model(saved.input)
    surgery.load(model, FOLDER / f"{name}.safetensors", example_inputs=saved.input)
    assert torch.equal(model(saved.input), expected(saved.input))
    found = surgery.trainable(model)
    assert {n: p.tolist() for n, p in found.items()} == {
        n: p.tolist() for n, p in surgery.trainable(expected).items()
    }
    while surgery.trainable(model).keys() != dict(model.named_parameters()).keys():
        surgery.remove(model)
    assert torch.equal(model(saved.input), plain)
    assert state(model)[0].keys() == before.keys()


@pytest.mark.parametrize("name", SAVED)
def test_what_is_written_now_is_what_this_version_wrote(name: str, tmp_path: Path) -> None:
    """A change of this is a new version of the format, with files of its own."""
    surgery.save(SAVED[name].adapted(), tmp_path)
    written, kept = (
        parts(tmp_path / "adapter.safetensors"),
        parts(FOLDER / f"version-{VERSION}-{name}.safetensors"),
    )
    for applied in (*written.content["applied"], *kept.content["applied"]):
        del applied["spec"]["rules"]
    assert written.content == kept.content
    assert all(torch.equal(t, kept.tensors[n]) for n, t in written.tensors.items())


def test_a_file_of_the_first_version_is_refused_with_what_to_do() -> None:
    model = stack()
    text = refused(
        lambda: surgery.load(model, FOLDER / "version-1-stack.safetensors"), model, "S514"
    )
    assert "of version 1 of the format, and this reads 2: apply its spec and train again" in text


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    found = written(tmp_path)
    found.content["version"] = VERSION + 1
    found.content["news"] = {}
    found.write(tmp_path / "later.safetensors")
    model = stack()
    text = refused(lambda: surgery.load(model, tmp_path / "later.safetensors"), model, "S514")
    assert "a newer release" in text


def written(folder: Path, model: nn.Module | None = None) -> Parts:
    return parts(surgery.save(model or stack_adapted(), folder / "good.safetensors"))


def test_no_class_of_this_package_is_in_a_file(tmp_path: Path) -> None:
    text = json.dumps(written(tmp_path, SAVED["attending"].adapted()).content)
    for name in ("Signature", "Layer(", "Port(", "Edit", "surgery.", "native"):
        assert name not in text


def test_files_and_fingerprints_outlast_changes_of_internal_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new field with a default, in every dataclass that a plan is made of, changes neither."""
    from surgery.planning import build, layers, place
    from surgery.rules.signature import Signature

    model = stack()
    before = surgery.plan(model, "on Linear apply lora(r = 2)")
    before.save(tmp_path / "plan.json")
    file = surgery.save(stack_adapted(), tmp_path)

    def longer(kind: type) -> Any:
        news = dataclasses.field(default=7, kw_only=True)
        fields = [("news", int, news)]
        return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)

    edit, layer = longer(planning.Edit), longer(layers.Layer)
    tensor, signature = longer(planning.Tensor), longer(Signature)
    monkeypatch.setattr(build, "Edit", edit)
    monkeypatch.setattr(layers, "Layer", layer)
    monkeypatch.setattr(place, "Tensor", tensor)
    monkeypatch.setattr(place, "Signature", signature)
    after = surgery.plan(model, "on Linear apply lora(r = 2)")
    assert "news=7" in repr(after.edits)
    assert after.fingerprint == before.fingerprint
    assert surgery.save(stack_adapted(), tmp_path / "now").read_bytes() == file.read_bytes()
    surgery.load(stack(), file)
    surgery.apply(model, SavedPlan.read(tmp_path / "plan.json"))


def test_fingerprints_tell_plans_apart() -> None:
    specs = [
        "on Linear apply lora(r = 2)",
        "on Linear apply lora(r = 3)",
        "on Linear apply lora(r = 2, alpha = 3)",
        "on Linear apply lora(r = 2, dropout = 0.5)",
        "on `0` apply lora(r = 2)",
        "on Linear apply lora(r = 2) as other",
        "on Linear apply lora(r = 2)\ntrain bias",
        "on Linear apply ia3",
    ]
    prints = [surgery.plan(stack(), spec).fingerprint for spec in specs]
    assert len(set(prints)) == len(specs)
    assert [surgery.plan(stack(), spec).fingerprint for spec in specs] == prints
    assert surgery.plan(fill(stack(), 3), specs[0]).fingerprint != prints[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("spec"),
        lambda d: d.update(spec=3),
        lambda d: d["spec"].update(text=None),
        lambda d: d["spec"].update(text="on"),
        lambda d: d.update(fingerprint=7),
        lambda d: d.update(version=1),
        lambda d: d.clear(),
    ],
)
def test_a_damaged_plan_is_refused(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan: Plan = surgery.plan(stack(), "on Linear apply lora(r = 2)")
    plan.save(path)
    data = json.loads(path.read_text())
    damage(data)
    with pytest.raises(surgery.SurgeryError, match="S533"):
        SavedPlan.read(data)
    for text in (json.dumps(data), "{", "[]", "\x80", '{"a": 1, "a": 2}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(surgery.SurgeryError, match="S533"):
            SavedPlan.read(path)
    with pytest.raises(surgery.SurgeryError, match="S533"):
        SavedPlan.read(tmp_path / "none.json")


def edit(model: nn.Module, name: str) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        tensors[name].view(-1)[-1] += 1


@pytest.mark.parametrize("name", ["first.weight", "first.bias", "norm.running_var", "second.bias"])
def test_the_base_is_the_one_that_it_is_when_saved(name: str, tmp_path: Path) -> None:
    """One edited number, after `apply` or elsewhere, makes another base of it."""
    model = classifier()
    surgery.apply(model, "on `second` apply lora(1)\ntrain `head`", seed=0)
    unedited = surgery.save(model, tmp_path / "unedited")
    edit(model, name)
    edited = surgery.save(model, tmp_path / "edited")
    for file, right, wrong in ((unedited, False, True), (edited, True, False)):
        bases = {True: classifier(), False: classifier()}
        edit(bases[True], name)
        text = refused(lambda f=file, b=bases[wrong]: surgery.load(b, f), bases[wrong], "S515")
        assert f"`{name}`" in text
        surgery.load(bases[right], file)


def test_a_head_drawn_anew_is_replaced_by_that_in_the_file(tmp_path: Path) -> None:
    model = classifier()
    surgery.apply(model, "on `first` apply lora(1)\ntrain `head`", seed=0)
    fill(model, 3, surgery.trainable(model))
    file = surgery.save(model, tmp_path)
    other = classifier()
    fill(other.head, 11)
    own, plain = other.head.weight.tolist(), other(torch.ones(1, 4))
    surgery.load(other, file)
    assert torch.equal(other(torch.ones(1, 4)), model(torch.ones(1, 4)))
    with surgery.disabled(other):
        assert torch.equal(other(torch.ones(1, 4)), plain)
    surgery.remove(other)
    assert other.head.weight.tolist() == own
    assert torch.equal(other(torch.ones(1, 4)), plain)
    wide = classifier()
    wide.head = nn.Linear(4, 5)
    assert "`head.weight` was float32 3×4 and is float32 5×4" in refused(
        lambda: surgery.load(wide, file), wide, "S515"
    )


def test_another_dtype_is_loaded_when_asked_for(tmp_path: Path) -> None:
    model = classifier()
    surgery.apply(model, "on `first` apply lora(1)\ntrain `head`", seed=0)
    fill(model, 3, surgery.trainable(model))
    file = surgery.save(model, tmp_path)
    half = classifier().bfloat16()
    assert 'base="shape"' in refused(lambda: surgery.load(half, file), half, "S515")
    with pytest.warns(surgery.SurgeryWarning) as warned:
        surgery.load(half, file, base="shape")
    (text,) = (str(w.message) for w in warned)
    assert "names and shapes of 11 tensors of the base were compared, their values were not" in text
    assert "float32 in the file, bfloat16 here" in text
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    x = torch.ones(2, 4)
    torch.testing.assert_close(half(x.bfloat16()).float(), model(x), rtol=0.05, atol=0.05)
    wide = nn.Sequential(nn.Linear(4, 4))
    refused(lambda: surgery.load(wide, file, base="shape"), wide, "S515")
    refused(lambda: surgery.load(wide, file, base="shapes"), wide, "S536")  # type: ignore[arg-type]


def test_dtypes_are_those_that_were_saved(tmp_path: Path) -> None:
    """Parameters kept in float32 on a base in bfloat16 lose nothing."""
    model = stack().bfloat16()
    surgery.apply(model, "on Linear apply lora(r = 2)", seed=0)
    for parameter in surgery.trainable(model).values():
        parameter.data = torch.randn(parameter.shape)
    file = surgery.save(model, tmp_path)
    again = surgery.load(stack().bfloat16(), file)
    for name, parameter in surgery.trainable(model).items():
        assert torch.equal(again.get_parameter(name), parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cast = surgery.load(stack().bfloat16(), file, base="shape")
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    file = surgery.save(stack_adapted(), tmp_path)
    good = file.read_bytes()
    for change, text in (
        (lambda p: nn.Parameter(torch.ones(3, 6)), "gone or has another shape"),
        (lambda p: nn.Parameter(p.to("meta")), "no values to save"),
        (lambda p: None, "gone or has another shape"),
    ):
        model = stack_adapted()
        graft: Any = model.get_submodule("0.lora")
        graft.A = change(graft.A)
        with pytest.raises(surgery.SurgeryError, match=f"S5(23|35)[^`]*`0.lora.A`[^`]*{text}"):
            surgery.save(model, file)
        assert file.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_parameters_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    model = stack()
    surgery.apply(model, "on Linear apply lora(r = 2)", seed=0)
    first, second = (model.get_submodule(f"{i}.lora") for i in (0, 2))
    second.A = nn.Parameter(first.A.detach()[:, :4])
    file = surgery.save(model, tmp_path)
    again = surgery.load(stack(), file)
    assert torch.equal(again.get_parameter("2.lora.A"), second.A)


def test_a_base_without_values_is_compared_by_shape_only(tmp_path: Path) -> None:
    """Layers whose weights are elsewhere (accelerate's offloading puts them on the meta device)."""
    model = classifier()
    surgery.apply(model, "on `second` apply lora(1)", seed=0)
    model.first.to("meta")
    file = surgery.save(model, tmp_path)
    whole = classifier()
    assert "meta device" in refused(lambda: surgery.load(whole, file), whole, "S515")
    with pytest.warns(surgery.SurgeryWarning):
        surgery.load(whole, file, base="shape")
    empty = classifier().to("meta")
    with pytest.raises(surgery.SurgeryError, match="S515"):
        surgery.load(empty, file, base="shape")


def test_an_adapter_loads_beside_others(tmp_path: Path) -> None:
    """Also where what is there trains parameters of the base, whose first values count."""
    alone = stack()
    surgery.apply(alone, "on `0` apply lora(r = 2) as two", seed=0)
    fill(alone, 3, surgery.trainable(alone))
    file = surgery.save(alone, tmp_path / "alone")
    both = stack_adapted()
    surgery.load(both, file)
    assert torch.equal(both.get_parameter("0.two.A"), alone.get_parameter("0.two.A"))
    again = surgery.load(stack(), surgery.save(both, tmp_path / "both"))
    assert torch.equal(again(torch.ones(1, 6)), both(torch.ones(1, 6)))
    surgery.remove(both, "lora")
    again = surgery.load(stack(), surgery.save(both, tmp_path / "left"))
    assert torch.equal(again(torch.ones(1, 6)), both(torch.ones(1, 6)))


def test_a_second_of_the_same_name_is_refused_and_takes_nothing_away(tmp_path: Path) -> None:
    file = surgery.save(stack_adapted(), tmp_path)
    model = stack_adapted()
    assert "S407" in refused(lambda: surgery.load(model, file), model, "S516")
