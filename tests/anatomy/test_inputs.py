"""On which inputs, and on which tensors, a forward is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy import run
from surgery.anatomy.graph import shape_of
from surgery.anatomy.inputs import example_inputs
from surgery.anatomy.run import record
from surgery.language.diagnostics import SurgeryError
from tests import models


def test_a_model_on_meta_takes_no_memory() -> None:
    import transformers

    config = transformers.LlamaConfig(num_hidden_layers=2)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) > 500_000_000
    found = record(model)
    assert found.how == "fake"
    assert shape_of(found.calls[0].outputs[0][1]) == (2, 8, config.vocab_size)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_large_models_run_on_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert record(models.build("llama")).how == "real"
    monkeypatch.setattr(run, "KEPT_PARAMETERS", 0)
    assert record(models.build("llama")).how == "fake"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.high(x) if x.sum().item() > 0 else self.low(x)


def test_a_branch_on_values_needs_real_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEPT_PARAMETERS", 0)
    found = record(Branching(), torch.ones(1, 2))
    assert found.how == "real"
    assert "high" in found.calls_of
    assert "low" not in found.calls_of


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bart", "vit", "encoder_layer"])
def test_fake_and_real_tell_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Any]] = []
    for way in ("real", "fake"):
        monkeypatch.setattr(run, "_ways", lambda *_, way=way: (way,))
        one = record(models.build(name))
        # Masks that are all ones are left out where they can be looked at.
        inputs = [{k: shape_of(v[0][1]) for k, v in c.inputs.items()} for c in one.calls]
        inputs = [{k: v for k, v in i.items() if not k.endswith("mask")} for i in inputs]
        outputs = [[(key, shape_of(v)) for key, v in c.outputs] for c in one.calls]
        found.append([[call.path for call in one.calls], inputs, outputs])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.ones(1), (1, [])),
        ((torch.ones(1), torch.ones(1)), (2, [])),
        ([torch.ones(1)], (1, [])),
        ({"x": torch.ones(1)}, (0, ["x"])),
    ],
)
def test_inputs_as_given(given: Any, wanted: tuple[int, list[str]]) -> None:
    args, kwargs = example_inputs(nn.Linear(1, 1), given)
    assert (len(args), list(kwargs)) == wanted


@pytest.mark.parametrize(
    "model",
    [
        nn.Embedding(5, 2),
        nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2)),
        nn.Conv3d(2, 2, 3),
        nn.GRU(3, 3),
        nn.MultiheadAttention(4, 2),
        nn.LayerNorm(4),
        nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
        nn.Linear(3, 2, dtype=torch.float64),
    ],
    ids=lambda model: type(model).__name__,
)
def test_inputs_are_made_up_for_plain_modules(model: nn.Module) -> None:
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        model(torch.ones(1, 1, 64, 64))
    assert record(model).calls[0].outputs


def test_no_inputs_to_be_made_up() -> None:
    class Demanding(nn.Module):
        def forward(self, a: Any, b: Any, c: Any) -> Any:
            return a

    with pytest.raises(SurgeryError) as failure:
        record(Demanding())
    assert failure.value.diagnostics[0].code == "S501"
    assert "pass example_inputs=" in str(failure.value)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(SurgeryError) as failure:
        record(nn.Linear(3, 2), torch.ones(1, 7))
    assert failure.value.diagnostics[0].code == "S502"
    assert "Linear does not run on the example inputs: RuntimeError" in str(failure.value)
