"""A merge that adds a bias: only where the model is loaded again with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import surgery
from surgery.language.diagnostics import SurgeryError
from tests.models import build


@pytest.mark.parametrize("spec", ["on q apply shift", "on q|v apply lora(2); on q apply shift"])
def test_a_bias_that_a_configuration_lacks_never_merges(spec: str, tmp_path: Path):
    """Llama's layers have none, and a loader would drop what merging added."""
    model = build("llama")
    verdicts = {v.promise: v for v in surgery.verify(model, spec).verdicts}
    assert "configuration" in " ".join(verdicts["merged = adapted"].details)
    assert "the model's configuration does not have" in str(surgery.diff(model, spec))
    surgery.apply(model, spec, seed=0)
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.normal_()
    ids = torch.arange(8)[None]
    adapted = model(ids).logits
    with surgery.merged(model):
        torch.testing.assert_close(model(ids).logits, adapted)
    try:
        report = surgery.merge(model)
        assert "configuration" in str(report)
        torch.testing.assert_close(model(ids).logits, adapted)
    except SurgeryError as problem:
        assert "configuration" in str(problem)  # noqa: PT017 (either way is right)
    surgery.remove(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_bias_merges_where_a_configuration_has_one(tmp_path: Path):
    model = build("gpt2")
    surgery.apply(model, "on q apply shift", seed=0)
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.normal_()
    ids = torch.arange(8)[None]
    adapted = model(ids).logits
    assert not surgery.merge(model).stayed
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path).eval()(ids).logits, adapted)
