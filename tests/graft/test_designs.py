"""Modules that are changed alike have one class, and its forward is written once.

A design says nothing of where its modules are.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import surgery
from surgery.graft import eager
from tests.models import build

SPECS = {
    "a linear": "on q{} apply lora(r = 2)",
    "a slice": "on q|v{} apply dora(r = 2)",
    "a region, or a module": "on mlp{} parallel adapter(2)",
    "its residual and its norm": "on mlp{} pfeiffer adapter(2)",
    "an attention's result": "on attention{} sequential adapter(2)",
    "tokens told from padding": "on mlp{} gated parallel adapter(2)",
    "several methods": "on up{} apply lora(r = 2); on mlp{} sequential adapter(2)",
}


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_as_many_forwards_are_written_for_all_layers_as_for_one(
    name: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = eager.write_forward, list[type[nn.Module]]()

    def writing(cls: type[nn.Module], *given: Any) -> Any:
        written.append(cls)
        return write(cls, *given)

    monkeypatch.setattr(eager, "write_forward", writing)
    model, counts = build(name), list[int]()
    for where in (" in layer[0]", ""):
        monkeypatch.setattr(eager, "_CLASSES", {})
        written.clear()
        surgery.apply(model, spec.replace("{}", where), seed=0)
        counts.append(len(written))
        surgery.remove(model)
    assert 0 < counts[0] == counts[1]
