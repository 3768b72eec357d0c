"""Modules that are changed alike have one class: a design says nothing of where its modules are."""

from __future__ import annotations

import pytest
from torch import nn

import surgery
from tests.models import build

SPECS = {
    "a linear": "on q apply lora(r = 2)",
    "a slice": "on q|v apply dora(r = 2)",
    "a region, or a module": "on mlp parallel adapter(2)",
    "its residual and its norm": "on mlp pfeiffer adapter(2)",
    "an attention's result": "on attention sequential adapter(2)",
    "tokens told from padding": "on mlp gated parallel adapter(2)",
    "several methods": "on up apply lora(r = 2); on mlp sequential adapter(2); on o apply ia3",
}


def classes(model: nn.Module, spec: str) -> list[list[type]]:
    """The classes that modules have got, of each layer of a stack of equal ones."""
    before = {path: type(module) for path, module in model.named_modules()}
    surgery.apply(model, spec, seed=0)
    adapted = {
        path: type(module)
        for path, module in model.named_modules()
        if path in before and type(module) is not before[path]
    }
    layers = [site.path for site in surgery.select(model, "layer")]
    return [
        [cls for path, cls in adapted.items() if f"{path}.".startswith(f"{layer}.")]
        for layer in layers
    ]


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_layers_that_are_changed_alike_share_their_classes(name: str, spec: str) -> None:
    first, *others = classes(build(name), spec)
    assert first
    assert others
    assert all(other == first for other in others)
