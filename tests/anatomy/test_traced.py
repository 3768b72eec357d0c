"""Traced graphs are seen as the modules they were made of."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from surgery.anatomy.graph import name_of, shape_of
from surgery.anatomy.run import record
from tests import models


def traced(forget: bool) -> fx.GraphModule:
    model = fx.symbolic_trace(models.build("nanogpt"))
    if forget:
        for node in model.graph.nodes:
            node.meta.pop("nn_module_stack", None)
    return model


@pytest.mark.parametrize("forget", [False, True])
def test_a_traced_graph_is_seen_as_the_modules_it_was(forget: bool) -> None:
    eager, flat = record(models.build("nanogpt")), record(traced(forget))
    wanted = {path for path in eager.calls_of if path.startswith("transformer.h.")}
    assert wanted == {path for path in flat.calls_of if path.startswith("transformer.h.")}
    virtual = {call.path for call in flat.calls if call.virtual}
    assert {"transformer.h.0", "transformer.h.1.attn", "transformer.h.1.mlp"} <= virtual
    assert "transformer.h.0.mlp.c_fc" not in virtual
    core = [op for op in flat.ops if name_of(op) == "scaled_dot_product_attention"]
    assert [flat.path_stack(op)[-1] for op in core] == [
        "transformer.h.0.attn",
        "transformer.h.1.attn",
    ]


def test_a_flattened_module_has_the_borders_it_had() -> None:
    eager, flat = record(models.build("nanogpt")), record(traced(forget=False))
    for path in ("transformer.h.0.mlp", "transformer.h.1.attn"):
        (one,), (other,) = eager.calls_of[path], flat.calls_of[path]
        into = [shape_of(v) for values in other.inputs.values() for _, v in values]
        assert into == [shape_of(one.inputs["x"][0][1])]
        assert [shape_of(v) for _, v in other.outputs] == [shape_of(one.outputs[0][1])]


def test_a_traced_graph_within_a_model_keeps_its_path() -> None:
    inner = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    found = record(nn.ModuleDict({"inner": inner})["inner"], torch.ones(1, 2))
    assert {"0", "1"} <= set(found.calls_of)
    outer = nn.Sequential(inner)
    assert {"0", "0.0", "0.1"} <= set(record(outer, torch.ones(1, 2)).calls_of)
