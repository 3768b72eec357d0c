"""The recorded forward: what it tells, on which tensors it runs, and that it leaves nothing."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import networkx as nx
import pytest
import torch
from torch import fx, nn

from surgery.anatomy import run
from surgery.anatomy.inputs import example_inputs
from surgery.anatomy.record import Record
from surgery.anatomy.run import record
from surgery.language.diagnostics import SurgeryError
from tests import models


class Restless(nn.Module):
    """A forward that changes all a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.count = 0
        self.kept: list[torch.Tensor] = []
        self.cache: dict[str, torch.Tensor] = {"old": torch.ones(1)}
        self.names = {"a"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.kept.append(x)
        self.cache["new"] = self.cache.pop("old")
        self.names.add("b")
        self.seen += 1
        self.seen = self.seen * 2
        self.added = x
        self.register_buffer("late", x, persistent=True)
        self.inner.weight.mul_(2)
        self.inner.bias = None
        self.train()
        random.random()
        return self.norm(self.drop(self.inner(x))) + torch.rand(4)


def snapshot(model: nn.Module) -> list[Any]:
    """All of a model that another forward, or a pickle, could see."""
    found: list[Any] = []
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            content = value.copy() if type(value) in (dict, list, set) else None
            found.append((path, name, id(value), _identities(content)))
    found += [(n, t.dtype, t.clone(), t.requires_grad) for n, t in model.state_dict().items()]
    found += [(n, p.grad) for n, p in model.named_parameters()]
    return found


def _identities(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: id(value) for key, value in content.items()}
    return None if content is None else sorted(map(id, content))


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def surroundings() -> list[Any]:
    return [
        torch.get_rng_state(),
        random.getstate(),
        nn.Module.__call__,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        len(nn.modules.module._global_forward_hooks),
    ]


@pytest.fixture(params=["real", "fake"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(run, "_ways", lambda _: (request.param,))
    return request.param


# Nothing is left behind


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "bert", "t5", "vit", "resnet", "encoder_layer", "albert", "mixtral"]
)
def test_a_model_is_left_as_it_was(name: str) -> None:
    model = models.build(name)
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    before, around = snapshot(model), surroundings()
    record(model)
    assert alike(before, snapshot(model))
    assert alike(around, surroundings())


def test_whatever_a_forward_changes_is_changed_back(how: str) -> None:
    model = Restless()
    model.norm.eval()
    before, around = snapshot(model), surroundings()
    bias, late = model.inner.bias, model.seen
    assert record(model, torch.ones(2, 4)).how == how
    assert alike(before, snapshot(model))
    assert alike(around, surroundings())
    assert model.inner.bias is bias
    assert model.seen is late
    assert model.training
    assert not model.norm.training


def test_so_is_what_a_failing_forward_changed(how: str) -> None:
    class Failing(Restless):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise RuntimeError("after all")

    model = Failing()
    before, around = snapshot(model), surroundings()
    with pytest.raises(SurgeryError, match="after all"):
        record(model, torch.ones(2, 4))
    assert alike(before, snapshot(model))
    assert alike(around, surroundings())


def test_given_tensors_are_not_written_to(how: str) -> None:
    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1)

    given = torch.zeros(3)
    record(Greedy(), given)
    assert torch.equal(given, torch.zeros(3))


def test_a_backward_may_still_come() -> None:
    model = models.build("resnet").train()
    loss = model(torch.rand(2, 3, 32, 32)).sum()
    record(model)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_tensors_whose_memory_was_exchanged_get_it_back() -> None:
    class Exchanging(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.weight.data = self.weight.data * 2
            return super().forward(input)

    model = Exchanging(2, 2)
    memory, content = model.weight.data_ptr(), model.weight.detach().clone()
    record(model)
    assert model.weight.data_ptr() == memory
    assert torch.equal(model.weight, content)


def test_hooks_of_the_model_stay_and_run() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    seen: list[int] = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    record(model)
    assert seen == [1]
    assert list(model[0]._forward_hooks) == [handle.id]
    assert not model[0]._forward_pre_hooks


# On which tensors


def test_a_model_on_meta_takes_no_memory() -> None:
    import transformers

    config = transformers.LlamaConfig(num_hidden_layers=2)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) > 500_000_000
    found = record(model)
    assert found.how == "fake"
    assert found.shapes[found.calls[0].outputs[0][1]] == (2, 8, config.vocab_size)
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
        monkeypatch.setattr(run, "_ways", lambda _, way=way: (way,))
        one = record(models.build(name))
        # Masks that are all ones are left out where they can be looked at.
        inputs = [{k: one.shapes[v[0][1]] for k, v in c.inputs.items()} for c in one.calls]
        inputs = [{k: v for k, v in i.items() if not k.endswith("mask")} for i in inputs]
        outputs = [[(key, one.shapes[v]) for key, v in c.outputs] for c in one.calls]
        found.append([[call.path for call in one.calls], inputs, outputs])
    assert found[0] == found[1]


# What is told


def ops(found: Record) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return [(op.name, op.inputs, op.outputs) for op in found.ops]


def recorded(function: Any, *given: torch.Tensor) -> Record:
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
    assert second.inputs == first.outputs
    assert third.inputs == second.outputs
    assert found.calls[0].outputs == [(None, third.outputs[0])]
    assert len({first.outputs, second.outputs, third.outputs}) == 3


def test_writing_through_a_view_reaches_its_base_and_back() -> None:
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        whole = x.clone()
        left, right = whole[:2], whole[2:]
        left.copy_(y)
        return whole + right.sum()

    found = recorded(forward, torch.ones(4), torch.ones(2))
    graph = found.graph()
    name = {op.index: op.name for op in found.ops}
    copy = next(i for i, text in name.items() if text == "copy_")
    after = {name[i] for i in nx.descendants(graph, copy)}
    assert {"add", "__add__"} & after
    assert "sum" in after


def test_setting_an_item_is_seen() -> None:
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.zeros(4)
        z[1:3] = y
        return z + x

    found = recorded(forward, torch.ones(4), torch.ones(2))
    given = {value for _, value in found.calls[0].inputs["y"]}
    writer = next(op for op in found.ops if op.name == "__setitem__")
    assert given <= set(writer.inputs)
    assert set(found.ops[-1].inputs) & set(writer.outputs)


def test_operators_that_change_nothing_are_none() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x.contiguous().to(x.dtype), training=False).shape[0] * x

    found = recorded(forward, torch.ones(2))
    assert [op.name.strip("_") for op in found.ops] in (["mul"], ["rmul"])


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
    product = next(op for op in found.ops if op.name == "scaled_dot_product_attention")
    assert found.path_stack(product) == ("", "transformer.h.0", "transformer.h.0.attn")
    names = set(found.parameters.values())
    assert "transformer.h.1.mlp.c_fc.weight" in names
    assert all(found.producer[value] == -1 for value in found.parameters)


def test_the_graph_flows_forward() -> None:
    found = record(models.build("gpt2"))
    graph = found.graph()
    assert nx.is_directed_acyclic_graph(graph)
    assert all(tail < head for tail, head in graph.edges)
    last = found.producer[found.calls[0].outputs[0][1]]
    linears = [op.index for op in found.ops if op.name == "addmm"]
    assert len(linears) == 8
    assert all(nx.has_path(graph, index, last) for index in linears)


def test_attention_is_recorded_off_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = record(layer.eval())
    assert {"self_attn", "linear1", "linear2", "norm1", "norm2"} <= set(found.calls_of)
    assert [op.name for op in found.ops if "multi_head" in op.name] == [
        "multi_head_attention_forward"
    ]


def test_a_module_called_often_has_its_calls_counted() -> None:
    found = record(models.build("albert"))
    layer = next(path for path in found.calls_of if path.endswith("albert_layers.0"))
    assert len(found.calls_of[layer]) == 2


# Traced graphs


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
    core = [op for op in flat.ops if op.name == "scaled_dot_product_attention"]
    assert [flat.path_stack(op)[-1] for op in core] == [
        "transformer.h.0.attn",
        "transformer.h.1.attn",
    ]


def test_a_flattened_module_has_the_borders_it_had() -> None:
    eager, flat = record(models.build("nanogpt")), record(traced(forget=False))
    for path in ("transformer.h.0.mlp", "transformer.h.1.attn"):
        (one,), (other,) = eager.calls_of[path], flat.calls_of[path]
        into = [flat.shapes[v] for values in other.inputs.values() for _, v in values]
        assert into == [eager.shapes[one.inputs["x"][0][1]]]
        assert [flat.shapes[v] for _, v in other.outputs] == [eager.shapes[one.outputs[0][1]]]


def test_a_traced_graph_within_a_model_keeps_its_path() -> None:
    inner = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    found = record(nn.ModuleDict({"inner": inner})["inner"], torch.ones(1, 2))
    assert {"0", "1"} <= set(found.calls_of)
    outer = nn.Sequential(inner)
    assert {"0", "0.0", "0.1"} <= set(record(outer, torch.ones(1, 2)).calls_of)


# Inputs


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
