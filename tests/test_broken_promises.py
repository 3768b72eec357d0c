"""Broken on purpose: each promise must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.graft import apply as grafting
from surgery.graft import create as creating
from surgery.graft import merge as merging
from surgery.graft import save as saving
from surgery.graft.apply import remove_specs
from surgery.promises import lasting
from tests.cli.toy import model
from tests.models import build
from tests.test_verification import SPEC, broken


def test_a_graft_is_not_passed_by():
    class Sly(nn.Module):
        """Reads the weight of its layer in evaluation, and calls the layer in training."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return nn.functional.linear(x, self.linear.weight, self.linear.bias)
            return self.linear(x)

    assert not broken(nn.Sequential(Sly(), nn.Linear(6, 2)), "on Linear apply lora(r = 2)")


def test_a_graft_that_never_runs():
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(surgery.SurgeryError, match="S306"):
        surgery.verify(Deaf(), "on `unused` apply lora(r = 2)")


def test_an_embedding_that_t5_never_calls():
    with pytest.raises(surgery.SurgeryError, match="S306"):
        surgery.verify(build("t5"), "on `shared` apply lora(r = 1)")


def test_a_gradient_that_is_cut():
    spec = """
    on up apply cut
    method cut(r = 2) {
      match y[*, n] = linear(x[*, m], W, b?)
      param A[r, m] ~ normal(std = 1)
      param B[n, r] = 0
      y += linear(relu(-abs(linear(x, A)) - 1), B)
    }"""
    assert "gradients reach all" in broken(model(), spec)


def replaced(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, change: Callable[..., Any]
) -> None:
    original = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *a, **k: change(original, *a, **k))


def test_a_merge_that_is_off(monkeypatch: pytest.MonkeyPatch):
    def off(original: Any, base: Any, edit: Any, wraps: Any, room: Any) -> Any:
        made: list[Tensor] = []
        bias = original(base, edit, wraps, lambda: made.append(room()) or made[0])
        made[0].data.mul_(1.001)
        return bias

    replaced(monkeypatch, merging, "write_merged", off)
    assert broken(model()) == ["merged = adapted"]


def test_a_merge_that_merges_one_layer_wrong(monkeypatch: pytest.MonkeyPatch):
    def off(original: Any, base: Any, edit: Any, *args: Any) -> Any:
        bias = original(base, edit, *args)
        return bias + 1 if edit.owner == "layers.1.up" else bias

    replaced(monkeypatch, merging, "write_merged", off)
    found = surgery.verify(model(), SPEC)
    (verdict,) = [v for v in found.verdicts if v.outcome == "broken"]
    assert verdict.promise == "merged = adapted"
    assert "layers.1.up" in verdict.text


def test_a_merge_that_does_nothing(monkeypatch: pytest.MonkeyPatch):
    def nothing(original: Any, base: Any, edit: Any, wraps: Any, room: Any) -> Any:
        into = room().detach()
        into.copy_(base.get_submodule(edit.owner).weight)
        return original(base, edit, wraps, lambda: torch.empty_like(into))

    replaced(monkeypatch, merging, "write_merged", nothing)
    assert broken(model()) == ["merged = adapted"]


def test_a_merge_that_leaves_edits_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merging, "mergeable", lambda site: [])
    assert broken(model()) == ["merged = adapted"]


def test_leaving_that_loses_bits(monkeypatch: pytest.MonkeyPatch):
    def lossy(parameter: Any, room: Any, lasting: bool) -> None:
        parameter.data.copy_(room)

    monkeypatch.setattr(merging, "_show", lossy)
    assert "contexts restore" in broken(model())


def test_a_file_that_loses_a_tensor(monkeypatch: pytest.MonkeyPatch):
    def fewer(original: Any, *args: Any) -> Any:
        return dict(list(original(*args).items())[1:])

    replaced(monkeypatch, saving, "_added", fewer)
    assert broken(model()) == ["saved = loaded"]


def test_a_seed_that_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    def other(original: Any, *args: Any) -> Any:
        parameter = original(*args)
        with torch.no_grad():
            return parameter.add_(torch.randn(parameter.shape).abs() + 1)

    replaced(monkeypatch, creating, "initial", other)
    assert {"identity at init", "same seed, same values"} <= set(broken(model()))


def test_a_removal_that_forgets_the_base(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grafting, "forget", lambda *a: None)
    assert "removal is exact" in broken(model(), "on up apply ia3; train norm")


def test_a_removal_that_leaves_a_child(monkeypatch: pytest.MonkeyPatch):
    def litter(base: nn.Module, name: str | None = None) -> None:
        remove_specs(base, name)
        base.litter = nn.Parameter(torch.ones(1))

    monkeypatch.setattr(lasting, "remove_specs", litter)
    assert "removal is exact" in broken(model())


def test_a_name_that_is_lost(monkeypatch: pytest.MonkeyPatch):
    def rename(original: Any, base: nn.Module, *args: Any, **options: Any) -> Any:
        plan = original(base, *args, **options)
        up = base.get_submodule("layers.0.up")
        up.register_parameter("weights", up._parameters.pop("weight"))
        return plan

    from surgery import verification

    replaced(monkeypatch, verification, "apply_spec", rename)
    assert "names stay" in broken(model(), "train bias")
