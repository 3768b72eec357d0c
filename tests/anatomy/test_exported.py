"""An exported program is read as the model that it was exported from."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy.graph import shape_of
from surgery.anatomy.inputs import example_inputs
from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.run import record
from tests import models

QUICK = (
    "llama",
    "bert",
    "t5",
    "vit",
    "mistral",
    "opt",
    "phi3",
    "encoder_layer",
    "nanogpt",
    "resnet",
)


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    with torch.no_grad():
        return torch.export.export(model, args, kwargs, strict=False).module()


def told(anatomy: Anatomy) -> dict[tuple[str, str], Any]:
    """All that graphs can have: tokens join where modules are called."""
    return {
        (role, site.path): (type(site.operator), site.index, site.rows, site.norm, site.core)
        for role, sites in anatomy.places.items()
        for site in sites
        if role != "tokens"
    }


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in models.names()],
)
def test_a_program_has_the_places_of_its_model(name: str) -> None:
    model = models.build(name)
    args, kwargs = example_inputs(model)
    wanted = told(read(model, kwargs or args))
    found = told(read(exported(model, args, kwargs), kwargs or args))
    assert found == wanted
    assert {"linear", "norm"} <= {role for role, _ in found}


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "phi3", "encoder_layer", "resnet"])
def test_decomposed_a_program_has_its_places_still(name: str) -> None:
    model = models.build(name)
    args, kwargs = example_inputs(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch.export.export(model, args, kwargs, strict=False).run_decompositions()
    found, wanted = told(read(program.module())), told(read(model, kwargs or args))
    # Its attentions are written out in products.
    assert {k: v[:-1] for k, v in found.items()} == {k: v[:-1] for k, v in wanted.items()}


def test_a_program_is_read_by_the_sizes_it_was_exported_for() -> None:
    model = models.build("bert")
    ids = torch.arange(12).reshape(2, 6)
    length = torch.export.Dim("length", min=2, max=32)
    program = torch.export.export(
        model, (), {"input_ids": ids}, dynamic_shapes={"input_ids": {1: length}}
    ).module()
    found = read(program)
    assert shape_of(found.recording.calls[0].inputs["input_ids"][0][1]) == (2, 6)
    assert told(found) == told(read(model))


def test_residuals_are_seen_in_a_program_as_in_its_model() -> None:
    model = models.build("llama")
    args, kwargs = example_inputs(model)
    program = exported(model, args, kwargs)
    for role in ("attention", "mlp"):
        pairs = zip(read(model).places[role], read(program, kwargs).places[role], strict=True)
        assert all(a.residual is not None and b.residual is not None for a, b in pairs)


class Nested(nn.Module):
    """Takes arguments by place and by name, some of them several tensors, and calls a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(
        self, x: torch.Tensor, both: tuple[torch.Tensor, torch.Tensor], *, more: dict[str, Any]
    ) -> torch.Tensor:
        return self.layer(self.layer(x) + both[0] * both[1]) + more["bias"]


def test_arguments_of_any_structure_reach_a_program() -> None:
    x, y, z, bias = (torch.randn(2, 4) for _ in range(4))
    given: dict[str, Any] = {"x": x, "both": (y, z), "more": {"bias": bias}}
    program = exported(Nested(), (x, (y, z)), {"more": {"bias": bias}})
    found = record(program, given)
    assert len(found.calls_of["layer"]) == 2
    kinds = {call.kind for call in found.calls_of["layer"]}
    assert kinds == {"torch.nn.modules.linear.Linear"}
    assert len(found.calls[0].outputs) == 1


def test_layers_of_a_program_are_told_by_the_class_that_they_had() -> None:
    body = models.NanoGPT().transformer
    model = nn.Sequential(body["wte"], *body["h"], nn.LayerNorm(models.HIDDEN)).eval()
    ids = torch.zeros(1, 3, dtype=torch.long)
    wanted = [site.path for site in read(model, ids).places["layer"]]
    assert [s.path for s in read(exported(model, (ids,), {}), ids).places["layer"]] == wanted
    assert wanted == ["1", "2"]
