"""The figures of a difference, against the model that really comes out."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import surgery
from surgery.difference import Diff
from tests.cli.toy import Language, model
from tests.models import build

SPECS = {
    "lora": "on Linear apply lora(r = 2)",
    "shared": "on up|down apply vera(r = 3); on embedding apply vera(r = 3) as other",
    "twice": "on up apply lora(r = 2); on up apply vera(r = 2); on down apply dora(r = 2)",
    "blocks": "on mlp parallel adapter(4); on mlp gated sequential adapter(3) as more",
    "trained": "on up apply ia3; train norm|bias; freeze all in layer[0] except norm",
    "training": "train bias",
    "everything": "train all",
    "mixed": "on embedding apply lora(r = 2); train head; on up|down apply shift",
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_figures_are_those_of_the_adapted_model(spec: str):
    base = model()
    before = {id(p) for p in base.parameters()}
    found = surgery.diff(base, spec).summary
    surgery.apply(base, spec, seed=0)
    parameters = list(base.parameters())
    added = [p for p in parameters if id(p) not in before]
    assert found.parameters == len(added)
    assert found.elements == sum(p.numel() for p in added)
    assert found.trainable == sum(p.numel() for p in parameters if p.requires_grad)
    assert found.base_elements == sum(p.numel() for p in parameters) - found.elements
    share = 100 * found.trainable / sum(p.numel() for p in parameters)
    assert found.as_dict()["trainable_percent"] == pytest.approx(share)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_nothing_of_the_model_changes(spec: str):
    base = model()
    state = copy.deepcopy(base.state_dict())
    flags = [p.requires_grad for p in base.parameters()]
    str(surgery.diff(base, spec))
    assert all(torch.equal(state[k], v) for k, v in base.state_dict().items())
    assert flags == [p.requires_grad for p in base.parameters()]
    assert {type(m) for m in base.modules()} == {type(m) for m in model().modules()}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_form_can_be_made(spec: str):
    found = surgery.diff(model(), spec)
    assert json.loads(found.as_json()) == json.loads(json.dumps(found.as_dict()))
    assert found.as_markdown().startswith(f"**{found.summary}**")
    assert str(found).endswith(str(found.summary))
    assert found.__rich__().plain == str(found)


def test_entries_hold_each_edit_once():
    found = surgery.diff(model(), SPECS["twice"])
    edits = [edit for entry in found.entries for edit in entry.edits]
    assert sorted(map(id, edits)) == sorted(map(id, found.plan.edits))


def test_layers_of_other_sizes_are_not_folded():
    uneven = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4))
    found = surgery.diff(uneven, "on Linear apply lora(r = 1)")
    assert [entry.sites for entry in found.entries] == [("0",), ("1",), ("2",)]


@pytest.mark.parametrize("spec", ["", "# nothing\n", "train all"])
def test_no_changes(spec: str):
    found = surgery.diff(model(), spec)
    assert found.is_empty
    assert str(found) == "No changes."


def test_freezing_what_trains_is_a_change():
    assert not surgery.diff(model(), "freeze embedding").is_empty
    frozen = model().requires_grad_(False)
    assert not surgery.diff(frozen, "train all").is_empty
    assert surgery.diff(frozen, "on up apply ia3").summary.frozen == 0


def test_a_second_method_is_told_from_what_stands():
    base = surgery.apply(model(), "on up apply lora(r = 2)", seed=0)
    found = surgery.diff(base, "on up apply ia3")
    assert found.entries[0].formula == "y = l * y"
    assert found.summary.elements == 3 * 32


def test_a_dead_except_is_shown():
    found = surgery.diff(model(), "on up except `nowhere` apply ia3")
    assert "warning[S302]" in str(found)
    assert "⚠" in found.as_markdown()
    assert found.as_dict()["warnings"][0]["place"] == "<spec>:1:14"


def test_ties_are_told():
    found = surgery.diff(model(), "on embedding apply lora(r = 2); train head")
    text = str(found)
    assert "embed.weight is tied with head.weight, which are trained with it" in text
    assert "cannot be merged: the weight is tied with `head`" in text


def test_a_lookup_costs_nothing_but_what_follows_it():
    found = surgery.diff(Language(words=5000), "on embedding apply lora(r = 2)")
    assert found.summary.flops == 2 * 2 * 16 + 16


def test_convolutions_have_no_share_of_a_token():
    found = surgery.diff(build("resnet"), "on Conv2d apply lora(r = 1)")
    assert found.summary.base_flops is None
    assert "% of the base's" not in str(found)


def test_equal_specs_do_not_differ():
    left, right = "on up apply lora(r=2)", "on `layers.*.up` apply lora(r = 2, alpha = 2)"
    assert surgery.diff(model(), left, against=right).is_empty


@pytest.mark.parametrize(
    ("left", "right", "changes"),
    [
        ("on up apply ia3", "on up|down apply ia3", {"added": 3}),
        ("on up|down apply ia3", "on up in layer[0] apply ia3", {"removed": 5}),
        ("on up apply lora(r = 2)", "on up apply lora(r = 3)", {"changed": 3}),
        ("on up apply lora", "on up apply lora(dropout = 0.5)", {"changed": 3}),
        ("on up apply lora", "on up apply lora as l", {"added": 3, "removed": 3}),
        ("on up apply ia3", "on up apply ia3; train norm", {}),
    ],
)
def test_differences_of_two_specs(left: str, right: str, changes: dict[str, int]):
    found = surgery.diff(model(), left, against=right)
    counted: dict[str, int] = {}
    for moved in found.compared.moved:
        counted[moved.change] = counted.get(moved.change, 0) + len(moved.sites)
    assert counted == changes
    assert not found.is_empty
    back = surgery.diff(model(), right, against=left)
    mirror = {"added": "removed", "removed": "added", "changed": "changed"}
    assert {mirror[m.change] for m in back.compared.moved} == set(changes)


def test_training_that_differs():
    found = surgery.diff(
        model(), "on up apply ia3; train bias", against="on up apply ia3; train norm"
    )
    assert {k: len(v) for k, v in found.compared.training.items()} == {
        "train now": 3,
        "freeze now": 6,
    }


@pytest.mark.parametrize(
    ("name", "classes"),
    [("llama", "Linear"), ("bert", "Linear"), ("gpt2", "Conv1D"), ("resnet", "Linear|Conv2d")],
)
def test_real_architectures(name: str, classes: str):
    base = build(name)
    found = surgery.diff(base, f"on {classes} apply lora(r = 1)")
    assert isinstance(found, Diff)
    surgery.apply(base, found.plan, seed=0)
    assert found.summary.trainable == sum(p.numel() for p in surgery.trainable(base).values())
