"""`verify` holds where the promises do, breaks where they do not, and leaves no trace."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import surgery
from surgery.graft import load as loading
from surgery.graft import merge as merging
from surgery.promises import lasting
from surgery.promises import merging as promised
from surgery.promises.keeping import checksums
from surgery.promises.verdicts import SIGNS
from surgery.reports.terminal import painted
from tests.cli.toy import model
from tests.models import build

SPEC = "on up|down apply lora(r = 2, dropout = 0.2); on mlp parallel adapter(4); train norm"


def outcomes(found: surgery.verification.Verification) -> dict[str, str]:
    return {v.promise: v.outcome for v in found.verdicts}


def broken(base: nn.Module, spec: str = SPEC, **options: Any) -> list[str]:
    found = surgery.verify(base, spec, **options)
    assert found.ok == ("broken" not in outcomes(found).values())
    return [promise for promise, outcome in outcomes(found).items() if outcome == "broken"]


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        "on Linear|Embedding apply lora(r = 2)",
        "on up apply dora(r = 2); on down apply vera(r = 3); on up apply ia3",
        "on mlp gated sequential adapter(4)",
        "train bias",
        "freeze embedding",
        "on up apply lora(r = 2); on mlp sequential adapter(4); on up apply shift",
        "on up apply adalora(3, cubic(3, 2, 1, 4), until = 5); on down apply dylora(2)",
    ],
)
def test_promises_hold(spec: str):
    assert broken(model(), spec) == []


def test_what_stays_around_a_merged_layer_is_no_fault_of_it():
    """A layer at the end of a region runs what is there; by itself it has no region."""
    base = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    spec = "on mlp gated sequential adapter(4)  on `linear2` apply lora(2)"
    assert broken(base, spec, example_inputs=(torch.randn(2, 3, 16),)) == []


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("llama", "Linear"),
        ("bert", "Linear"),
        ("gpt2", "Conv1D"),
        ("resnet", "Linear|Conv2d"),
        ("t5", "Linear"),
    ],
)
def test_promises_hold_on_real_architectures(name: str, classes: str):
    assert broken(build(name), f"on {classes} apply lora(r = 1)") == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_promises_hold_in_other_types(dtype: torch.dtype):
    assert broken(model().to(dtype)) == []


def test_a_start_that_is_not_the_base_is_not_promised():
    spec = "on up apply half as h\nmethod half() { match y[*, n] = linear(x, W, b?) param l[n] = 0.5 y = l * y }"
    found = outcomes(surgery.verify(model(), spec))
    assert found["identity at init"] == "not promised"
    assert found["merged = adapted"] == "held"


def state(base: nn.Module) -> tuple[Any, ...]:
    return (
        checksums(base),
        [type(m) for m in base.modules()],
        [m.training for m in base.modules()],
        {n: p.requires_grad for n, p in base.named_parameters()},
        [id(p) for p in base.parameters()],
        [p.grad for p in base.parameters()],
        list(base.state_dict()),
        torch.get_rng_state().tolist(),
        sorted(base.__dict__),
    )


@pytest.mark.parametrize(("name", "classes"), [("llama", "Linear"), ("resnet", "Conv2d")])
def test_it_leaves_no_trace(name: str, classes: str):
    base = build(name).train()
    next(base.parameters()).requires_grad_(False)
    before = state(base)
    surgery.verify(base, f"on {classes} apply lora(r = 1); train norm")
    assert state(base) == before


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (promised, "merged_specs"),
        (lasting, "load_adapter"),
        (lasting, "save_adapter"),
        (merging, "_write"),
        (loading, "_values"),
        (loading, "_carry_out"),
    ],
)
def test_it_leaves_no_trace_where_something_fails(
    where: Any, what: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of luck")

    base = model()
    before = state(base)
    monkeypatch.setattr(where, what, fail)
    assert broken(base)
    assert state(base) == before


def test_an_interrupt_leaves_no_trace():
    base = model()
    before = state(base)

    def stop(text: str) -> None:
        if text == "trying: merged = adapted":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgery.verify(base, SPEC, progress=stop)
    assert state(base) == before


def test_a_tolerance_of_nothing_is_not_met():
    assert broken(model(), tolerance=0.0) == ["merged = adapted"]


def test_an_adapted_model_is_refused():
    base = surgery.apply(model(), SPEC, seed=0)
    with pytest.raises(surgery.SurgeryError, match="S518"):
        surgery.verify(base, SPEC)


def test_a_spec_that_does_not_fit_is_an_error():
    with pytest.raises(surgery.SurgeryError, match="S301"):
        surgery.verify(model(), "on Liner apply lora")


def test_inputs_can_be_given():
    found = surgery.verify(model(), SPEC, example_inputs={"ids": torch.arange(6).reshape(1, 6)})
    assert found.ok
    assert found.inputs == "ids 1 × 6"


def test_promises_hold_on_a_traced_model():
    traced = fx.symbolic_trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
    assert broken(traced, "on Linear apply lora(r = 2)") == []


def test_outputs_that_are_written_to_afterwards():
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y += self.second(x)
            return y

    assert broken(Writing(), "on Linear apply lora(r = 2)") == []


def test_experts_that_no_token_reaches_are_told_apart():
    class Routed(nn.Module):
        """Of three experts the first takes all."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[0](x)

    found = surgery.verify(Routed(), "on Linear apply lora(r = 2)")
    assert found.ok
    assert any("as the plan warns" in d for v in found.verdicts for d in v.details)


def test_as_json():
    found = surgery.verify(model(), SPEC)
    data = json.loads(found.as_json())
    assert data["ok"]
    assert [p["promise"] for p in data["promises"]] == [v.promise for v in found.verdicts]
    assert copy.copy(found).summary == data["summary"]


def test_every_outcome_has_its_colour() -> None:
    assert all(painted(f"{sign}  names stay").spans for sign in SIGNS.values())
