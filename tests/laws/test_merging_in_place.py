"""A merge for good writes where the weights are, layer by layer, and an interrupt takes it all back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery.graft import journal
from tests.laws.faults import Interrupted, interrupted
from tests.laws.lives import same, state_of
from tests.laws.strategies import randomise_added

SPEC = "on Linear apply lora(2)  on Linear apply shift"


def adapted(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3)).to(dtype)
    return randomise_added(surgery.apply(model, SPEC, seed=0))


def places(model: nn.Module) -> dict[str, int]:
    names = ("weight", "bias")
    return {n: p.data_ptr() for n, p in model.named_parameters() if n.endswith(names)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_merged_weights_are_where_the_base_had_them(dtype: torch.dtype) -> None:
    model = adapted(dtype)
    before, parameters = places(model), dict(model.named_parameters())
    with surgery.merged(model):
        expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    surgery.merge(model)
    assert places(model) == before
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, expected[name])


def test_who_else_looks_at_a_weight_sees_it_as_it_was() -> None:
    model = adapted()
    held = {n: t for n, t in model.state_dict().items() if "2." in n}
    view, saved = model[0].weight.detach()[1], copy.deepcopy(held)
    line = view.clone()
    expected = model(torch.ones(2, 6))
    surgery.merge(model)
    assert all(torch.equal(held[n], saved[n]) for n in held)
    assert torch.equal(view, line)
    torch.testing.assert_close(model(torch.ones(2, 6)), expected)


def test_memory_that_torch_did_not_allocate_is_not_written_to() -> None:
    model, array = adapted(), np.ones((5, 6), dtype=np.float32)
    surgery.remove(model)
    model[0].weight = nn.Parameter(torch.from_numpy(array))
    randomise_added(surgery.apply(model, SPEC, seed=0))
    expected = model(torch.ones(2, 6))
    surgery.merge(model)
    assert (array == 1).all()
    torch.testing.assert_close(model(torch.ones(2, 6)), expected)


def test_parameters_in_one_memory_merge_apart() -> None:
    model = adapted()
    surgery.remove(model)
    model[1] = nn.Linear(5, 5, bias=False)
    model[1].bias = nn.Parameter(model[0].bias.data[:])
    randomise_added(surgery.apply(model, "on `0` apply shift", seed=0))
    other, expected = model[1].bias.detach().clone(), model(torch.ones(2, 6))
    surgery.merge(model)
    assert torch.equal(model[1].bias, other)
    torch.testing.assert_close(model(torch.ones(2, 6)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", ["memory", "a file", "no file"])
def test_an_interrupt_gives_back_every_bit(
    room: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    if room != "memory":
        monkeypatch.setattr(journal, "IN_MEMORY", 1)
    if room == "no file":
        monkeypatch.setattr(journal, "bytes_of", full)
    start, stopped = adapted(dtype), 0
    for number in range(0, 4000, 23):
        model = copy.deepcopy(start)
        before, there = state_of(model), places(model)
        try:
            interrupted(lambda model=model: surgery.merge(model), number)
        except Interrupted:
            same(state_of(model), before, f"a fault at call {number}")
            assert places(model) == there
            stopped += 1
        else:
            break
    assert stopped > 20
    assert torch.isfinite(model(torch.ones(2, 6, dtype=dtype))).all()


def test_a_backward_through_a_forward_before_is_an_error() -> None:
    model = adapted()
    x = torch.ones(2, 6, requires_grad=True)
    loss = model(x).sum()
    surgery.merge(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
