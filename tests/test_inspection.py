"""What the inspection of a model shows, and that it changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

import surgery
from surgery.inspection import Inspection
from surgery.promises.keeping import checksums
from tests.cli.toy import closed, model
from tests.models import build


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "resnet"])
def test_trees(name: str, snapshot: Any):
    assert str(surgery.inspect(build(name))) == snapshot


def test_a_tree_counts_every_parameter():
    base = build("llama")
    found = surgery.inspect(base).tree
    assert found is not None
    assert found.elements == sum(p.numel() for p in base.parameters())


def test_unlike_layers_are_not_folded():
    uneven = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 4))
    found = surgery.inspect(uneven).tree
    assert found is not None
    assert [branch.names for branch in found.children] == [("0", "1"), ("2",), ("3",)]


def test_a_model_that_does_not_run_is_shown_without_roles():
    found = surgery.inspect(closed())
    assert "the roles are not known" in str(found)
    assert "inside      Linear 4 → 4" in str(found)


def test_an_adapted_model_is_shown_as_its_base():
    base = model()
    before = str(surgery.inspect(base))
    surgery.apply(base, "on up apply lora(r = 2)", seed=0)
    sums = checksums(base)
    assert str(surgery.inspect(base)) == before
    assert checksums(base) == sums


def count(found: Inspection) -> int:
    return sum(len(match.sites) for match in found.matches)


@pytest.mark.parametrize("selector", ["up", "up|down in layer[1:]", "bias", "mlp", "`layers.0.*`"])
def test_matches_are_what_select_gives(selector: str):
    base = model()
    found = surgery.inspect(base, selector)
    expected = [site.path for site in surgery.select(base, selector)]
    assert sorted(path for match in found.matches for path in match.sites) == sorted(expected)
    assert json.loads(found.as_json())["selector"] == selector
    assert str(count(found)) in str(found).splitlines()[-1]


def test_a_selector_that_matches_nothing_is_an_error():
    with pytest.raises(surgery.SurgeryError, match="S301"):
        surgery.inspect(model(), "router")


SPEC = "on up in layer[1:] apply lora(r = 2); on up apply ia3; on mlp sequential adapter(4)"


@pytest.mark.parametrize("path", ["layers.0.up", "layers.2.up", "layers.1[up..down]", "embed"])
def test_explanations_agree_with_the_plan(path: str):
    base = model()
    edits = surgery.plan(base, SPEC).edits
    planned = [e.method.statement for e in edits if path in (e.site.name, *e.site.paths)]
    found = surgery.explain(base, path, SPEC)
    assert [i for i, v in enumerate(found.verdicts) if v.applies] == planned


def test_an_explanation_counts_on_what_stands():
    base = surgery.apply(model(), "on up apply lora(r = 2)", seed=0)
    found = surgery.explain(base, "layers.0.up", "on up apply ia3")
    assert "merged weight = scale_rows(W + (lora.B @ lora.A), l)" in str(found)


def test_a_tied_weight_is_the_reason():
    found = surgery.explain(model(), "head", "on `head` apply lora(r = 2)")
    assert "! cannot be merged: the weight is tied with `embed`, which would change too" in str(
        found
    )
    assert json.loads(found.as_json())["verdicts"][0]["applies"]
