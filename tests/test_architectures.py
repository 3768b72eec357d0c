"""The walk over architectures: it builds, tries, tells what fails, and outlives what hangs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.architectures.building import build
from benchmarks.architectures.catalogue import Architecture, architectures
from benchmarks.architectures.columns import COLUMNS
from benchmarks.architectures.running import example, obstacle
from benchmarks.architectures.shrink import shrunk
from benchmarks.architectures.table import document, summary
from benchmarks.architectures.trying import UnkeptError, attempt, tried
from benchmarks.architectures.walking import examined, walk

LLAMA = Architecture("causal", "llama", "LlamaForCausalLM")
GPT2 = Architecture("classification", "gpt2", "GPT2ForSequenceClassification")
T5 = Architecture("seq2seq", "t5", "T5ForConditionalGeneration")


def test_the_lists_are_those_of_transformers() -> None:
    known = architectures()
    assert {LLAMA, GPT2, T5} <= set(known)
    assert len({a.key for a in known}) == len(known) > 300


@pytest.mark.parametrize("architecture", [LLAMA, GPT2, T5], ids=lambda a: a.key)
def test_specs_on_three_architectures(architecture: Architecture) -> None:
    found = examined(architecture, ("linear", "adapter"))
    assert found["runs"], found["reason"]
    assert [cell["verdict"] for cell in found["cells"].values()] == ["good", "good"]


def test_each_kind_of_layer_is_kept_once_at_least() -> None:
    kinds = ["sliding"] * 5 + ["full"]
    made = shrunk({"num_hidden_layers": 12, "hidden_size": 4096, "layer_types": 2 * kinds})
    assert made["layer_types"] == ["sliding", "full"]
    assert made["num_hidden_layers"] == 2
    assert made["hidden_size"] == 64


def test_what_does_not_run_is_told_and_ends_nothing() -> None:
    broken = Architecture("causal", "llama", "NoSuchModel")
    found = dict(walk([broken, LLAMA], (), jobs=1, limit=60))
    assert not found[broken]["runs"]
    assert "NoSuchModel" in found[broken]["reason"]
    assert found[LLAMA]["runs"]
    slow = dict(walk([LLAMA], tuple(COLUMNS), jobs=1, limit=0))
    assert "more than 0 seconds" in slow[LLAMA]["reason"]


def test_an_error_becomes_the_cell() -> None:
    model = build(LLAMA)
    inputs = example(model, "causal")
    assert obstacle(model, inputs, "causal") is None
    cell = tried(model, inputs, "on qkv apply lora")
    assert (cell.verdict, cell.code) == ("failed", "S301")


class Split(nn.Module):
    """Keeps the weight of one layer where no graft comes, and never uses what two return."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.unused = (nn.Linear(4, 4) for _ in range(3))
        self.held = [self.read.weight]

    def forward(self, x: torch.Tensor) -> object:
        self.read(x)
        self.unused(x)
        logits = self.called(x) + nn.functional.linear(x, self.held[0])
        return type("Output", (), {"logits": logits})()


def test_where_the_base_trains_what_is_new_has_to() -> None:
    model = Split().eval()
    inputs = {"x": torch.randn(2, 4)}
    attempt(model, inputs, "on `called`|`unused` apply lora(r = 2)")
    with pytest.raises(UnkeptError, match="2 of 6 new parameters get no gradient: read"):
        attempt(model, inputs, "on Linear apply lora(r = 2)")


def test_the_page_tells_all() -> None:
    good = {"verdict": "good", "code": "", "reason": ""}
    results = {
        LLAMA.key: {"runs": True, "reason": "", "cells": {"lora": good}},
        T5.key: {
            "runs": True,
            "reason": "",
            "cells": {"lora": {**good, "verdict": "failed", "code": "S301"}},
        },
        GPT2.key: {"runs": False, "reason": "it broke", "cells": {}},
    }
    page = document(results)
    assert "All of it on 0" in page
    assert "| `llama` | ✓ |" in page
    assert "| `t5` | S301 |" in page
    assert "`classification/gpt2`: it broke" in page
    assert summary(results, ["lora"]).row_count == 1
