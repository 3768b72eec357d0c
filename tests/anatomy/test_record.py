"""The recorded forward: operators, values, and the modules that were called."""

from __future__ import annotations

import dataclasses
from typing import Any

import networkx as nx
import pytest
import torch
from torch import nn

from surgery.anatomy.dataflow import INPUT, OUTPUT, operators
from surgery.anatomy.graph import Recording, index_of, inputs_of, maker_of, name_of, outputs_of
from surgery.anatomy.run import record
from tests import models


def recorded(function: Any, *given: torch.Tensor) -> Recording:
    class Model(nn.Module):
        forward = staticmethod(function)

    return record(Model(), given)


def test_writing_in_place_makes_a_new_value() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y += 1
        return y.relu_()

    found = recorded(forward, torch.ones(2))
    first, second, third = found.ops
    assert inputs_of(second) == (first,)
    assert inputs_of(third) == (second,)
    assert found.calls[0].outputs == [(None, third)]
    assert [outputs_of(op) for op in found.ops] == [[first], [second], [third]]


def test_writing_through_a_view_reaches_its_base_and_back() -> None:
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        whole = x.clone()
        left, right = whole[:2], whole[2:]
        left.copy_(y)
        return whole + right.sum()

    found = recorded(forward, torch.ones(4), torch.ones(2))
    copy = next(op for op in found.ops if name_of(op) == "copy_")
    after = {
        name_of(found.ops[i]) for i in nx.descendants(operators(found), index_of(copy)) - {OUTPUT}
    }
    assert {"add", "__add__"} & after
    assert "sum" in after


def test_setting_an_item_is_seen() -> None:
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.zeros(4)
        z[1:3] = y
        return z + x

    found = recorded(forward, torch.ones(4), torch.ones(2))
    given = {value for _, value in found.calls[0].inputs["y"]}
    writer = next(op for op in found.ops if name_of(op) == "__setitem__")
    assert given <= set(inputs_of(writer))
    assert set(inputs_of(found.ops[-1])) & set(outputs_of(writer))


def test_operators_that_change_nothing_are_none() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x.contiguous().to(x.dtype), training=False).shape[0] * x

    found = recorded(forward, torch.ones(2))
    assert [name_of(op).strip("_") for op in found.ops] in (["mul"], ["rmul"])


@dataclasses.dataclass
class Result:
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    ("pack", "keys"),
    [
        (lambda a, b: a, [None]),
        (lambda a, b: (a, b), [0, 1]),
        (lambda a, b: [a, None, b], [0, 2]),
        (lambda a, b: {"x": a, "y": b}, ["x", "y"]),
        (Result, ["first", "second"]),
    ],
)
def test_outputs_say_where_they_are(pack: Any, keys: list[Any]) -> None:
    found = recorded(lambda x: pack(x + 1, x + 2), torch.ones(2))
    assert [key for key, _ in found.calls[0].outputs] == keys


def test_inputs_go_by_the_names_of_forward() -> None:
    class Inner(nn.Module):
        def forward(self, hidden: Any, mask: Any = None, *more: Any, scale: Any = None) -> Any:
            return hidden

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.inner(x, x + 1, x + 2)
            self.inner(mask=(x, x), hidden=x)
            return self.inner(x, scale=x)

    found = record(Outer(), torch.ones(1))
    first, second, third = found.calls_of["inner"]
    (given,) = found.calls[0].inputs["x"]
    assert list(first.inputs) == ["hidden", "mask", "more"]
    assert second.inputs == {"mask": [(0, given[1]), (1, given[1])], "hidden": [given]}
    assert third.inputs == {"hidden": [given], "scale": [given]}


def test_modules_know_what_they_ran() -> None:
    found = record(models.build("nanogpt"))
    product = next(op for op in found.ops if name_of(op) == "scaled_dot_product_attention")
    assert found.path_stack(product) == ("", "transformer.h.0", "transformer.h.0.attn")
    names = set(found.parameters.values())
    assert "transformer.h.1.mlp.c_fc.weight" in names
    assert all(maker_of(value) is None for value in found.parameters)


def test_the_graph_flows_forward() -> None:
    found = record(models.build("gpt2"))
    graph = operators(found)
    assert nx.is_directed_acyclic_graph(graph)
    between = [edge for edge in graph.edges if not {INPUT, OUTPUT} & {*edge}]
    assert all(tail < head for tail, head in between)
    assert len(between) > len(found.ops) / 2
    linears = [op for op in found.ops if name_of(op) == "addmm"]
    assert len(linears) == 8
    assert all(nx.has_path(graph, index_of(op), OUTPUT) for op in linears)


def test_attention_is_recorded_off_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = record(layer.eval())
    assert {"self_attn", "linear1", "linear2", "norm1", "norm2"} <= set(found.calls_of)
    assert [name_of(op) for op in found.ops if "multi_head" in name_of(op)] == [
        "multi_head_attention_forward"
    ]


def test_a_module_called_often_has_its_calls_counted() -> None:
    found = record(models.build("albert"))
    layer = next(path for path in found.calls_of if path.endswith("albert_layers.0"))
    assert len(found.calls_of[layer]) == 2
