"""Recording a forward leaves the model, and all around it, exactly as it was."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from surgery import plan
from surgery.anatomy import run
from surgery.anatomy.read import read
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
    monkeypatch.setattr(run, "_ways", lambda *_: (request.param,))
    return request.param


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


@pytest.mark.parametrize("name", ["gpt2", "encoder_layer", "mixtral"])
def test_reading_and_planning_draw_no_random_numbers(name: str) -> None:
    model = models.build(name)
    before = torch.get_rng_state()
    assert read(model).places
    plan(model, "on q|v apply lora(2) on attention apply prefix(2)")
    assert torch.equal(torch.get_rng_state(), before)
