"""Where a promise is easily broken: tied tensors, weights that are computed, values that are kept."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import (
    Holder,
    assert_state,
    randomise_added,
    same_bits,
    snapshot,
    state_of,
)
from tests.models import randomise


class Tied(nn.Module):
    """Two layers that share what ``name`` says; the second reads the first's output."""

    def __init__(self, name: str):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.register_parameter(name, getattr(self.first, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def refuses(model: nn.Module, reason: str) -> None:
    """A merge that would change more than it should is refused, and changes nothing."""
    before = state_of(model)
    with pytest.raises(surgery.SurgeryError, match=rf"S513[\s\S]*{reason}"):
        surgery.merge(model)
    assert_state(model, before)
    with surgery.merged(model):
        assert_state(model, before)
    assert not any(edit.derived.merges for edit in model._surgery.applied[0].plan.edits)


@pytest.mark.parametrize(
    ("shared", "method", "refused"),
    [
        ("weight", "lora(2)", True),
        ("weight", "ia3_input", True),
        ("weight", "shift", False),
        ("bias", "lora(2)", False),
        ("bias", "shift", True),
        ("bias", "ia3", True),
    ],
)
def test_a_merge_leaves_tied_tensors_alone(shared: str, method: str, refused: bool) -> None:
    model, x = randomise(Tied(shared), 1), torch.randn(3, 4)
    other = model.first(x)
    surgery.apply(model, f"on `second` apply {method}", seed=0)
    randomise_added(model)
    adapted = model(x)
    if refused:
        refuses(model, f"the {shared} is tied with `first`")
    else:
        assert not surgery.merge(model).stayed
    assert torch.equal(model.first(x), other)
    torch.testing.assert_close(model(x), adapted)
    assert getattr(model.first, shared) is getattr(model.second, shared)


def test_a_weight_with_a_second_name_does_not_merge() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.table = self.layer.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ self.table

    model = surgery.apply(Read(), "on `layer` apply lora(2)", seed=0)
    randomise_added(model)
    refuses(model, "the weight is tied with `table`")


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)", "ia3_input", "lokr(2)"])
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(6, 4), lambda: nn.Conv1d(4, 6, 3)],
    ids=["linear", "convolution"],
)
def test_a_parametrised_weight_adapts_and_does_not_merge(method: str, make: type) -> None:
    model = randomise(Holder(nn.utils.parametrizations.weight_norm(make())), 1)
    plain = Holder(make())
    x = torch.randn(3, 6) if isinstance(plain.layer, nn.Linear) else torch.randn(3, 4, 5)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(plain.layer, name).copy_(getattr(model.layer, name))
    base = model(x)
    for each in (model, plain):
        surgery.apply(each, f"on `layer` apply {method}", seed=0)
        randomise_added(each)
    torch.testing.assert_close(model(x), plain(x))
    refuses(model, "does not hold a plain weight")
    surgery.remove(model)
    assert torch.equal(model(x), base)


def test_an_embedding_that_rescales_its_rows_rescales_the_changed_ones() -> None:
    model, ids = Holder(nn.Embedding(7, 4, max_norm=0.5)), torch.arange(7)
    base, before = copy.deepcopy(model)(ids), snapshot(model)
    surgery.apply(model, "on `layer` apply lora(2)", seed=0)
    assert torch.equal(model(ids), base)
    randomise_added(model)
    adapted = model(ids)
    assert adapted.norm(dim=1).max() < 0.501
    with surgery.merged(model):
        torch.testing.assert_close(model(ids), adapted)
    surgery.remove(model)
    assert same_bits(snapshot(model), before)


def write_data(model: nn.Module) -> None:
    for parameter in surgery.trainable(model).values():
        parameter.data.mul_(2)


def swap_data(model: nn.Module) -> None:
    for parameter in surgery.trainable(model).values():
        parameter.data = 3 * parameter.data


def write_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.layer.weight.mul_(2)


def change_dtype(model: nn.Module) -> None:
    model.bfloat16().float()


@pytest.mark.parametrize("change", [write_data, swap_data, write_in_place, change_dtype])
def test_kept_values_follow_their_parameters(change: type) -> None:
    """DoRA's norm is kept between forwards without gradients, however its sources are written."""
    model = surgery.apply(Holder(nn.Linear(6, 4)), "on `layer` apply dora(2)", seed=0)
    randomise_added(model)
    x = torch.randn(3, 6)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(model(x), before)
        change(model)
        after = model(x)
    assert torch.equal(after, model(x).detach())
    assert not torch.equal(after, before)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(x), after)


def test_kept_values_are_no_part_of_a_file() -> None:
    model = surgery.apply(Holder(nn.Linear(6, 4)), "on `layer` apply dora(2)", seed=0)
    x = torch.randn(3, 6)
    sizes = []
    for _ in range(2):
        file = io.BytesIO()
        torch.save(model, file)
        sizes.append(len(file.getvalue()))
        with torch.no_grad():
            model(x)
    assert sizes[1] - sizes[0] < 200


REFUSALS = {
    "another dtype": lambda: Holder(nn.Linear(4, 4)).double(),
    "another shape": lambda: Holder(nn.Linear(4, 5)),
    "another name": lambda: nn.Sequential(nn.Linear(4, 4)),
    "no bias": lambda: Holder(nn.Linear(4, 4, bias=False)),
    "other values": lambda: randomise(Holder(nn.Linear(4, 4)), 2),
}


@pytest.mark.parametrize("other", REFUSALS)
def test_another_base_is_refused(other: str, tmp_path: Path) -> None:
    model = randomise(Holder(nn.Linear(4, 4)), 1)
    surgery.apply(model, "on `layer` apply lora(2)", seed=0)
    file = surgery.save(model, tmp_path)
    wrong = REFUSALS[other]()
    before = state_of(wrong)
    with pytest.raises(surgery.SurgeryError, match="S515"):
        surgery.load(wrong, file)
    assert_state(wrong, before)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    model = Holder(nn.Linear(4, 4))
    before = state_of(model)
    (tmp_path / "adapter.safetensors").write_bytes(b"no")
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(surgery.SurgeryError, match="S514"):
            surgery.load(model, path)
    assert_state(model, before)


LATE = """
method folded() { match y = linear(x, W, b?) x = relu(x) }
on `layer` apply lora(2) as first on `layer` apply folded
"""


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (LATE, "S412"),
        ("on `layer` apply ia3 on `layer` apply lora(2) as ia3", "S407"),
        ("train bias on `layer` apply lora(99)", "S404"),
        ("on `layer` apply loha(2) on `layer` apply missing(2)", "S2"),
        ("on `layer` apply loha(2) on `layer` parallel adapter(2)", "S405"),
    ],
)
def test_a_failure_leaves_what_stood_before(spec: str, code: str) -> None:
    """Also one that only shows while the forward is written, when parameters are there already."""
    model, x = randomise(Holder(nn.Conv1d(4, 6, 3)), 1), torch.randn(2, 4, 7)
    fresh = state_of(model)
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.apply(model, spec)
    assert_state(model, fresh)
    surgery.apply(model, "on `layer` apply lora(2) as old", seed=0)
    randomise_added(model)
    output, before = model(x), state_of(model)
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.apply(model, spec)
    assert_state(model, before)
    assert torch.equal(model(x), output)
    surgery.remove(model)
    assert_state(model, fresh)


def test_what_one_spec_left_another_finds() -> None:
    """Several specs, one after the other, are one spec with all their statements."""
    whole, x = randomise(Holder(nn.Linear(4, 4)), 1), torch.randn(3, 4)
    parts = copy.deepcopy(whole)
    statements = [f"on `layer` apply {m}" for m in ("lora(2)", "ia3", "dora(2)", "shift")]
    surgery.apply(whole, "\n".join(statements), seed=0)
    for statement in statements:
        surgery.apply(parts, statement, seed=0)
    assert same_bits(snapshot(whole), snapshot(parts))
    for model in (whole, parts):
        randomise_added(model)
    assert torch.equal(whole(x), parts(x))
    for name in ("ia3", "dora", "lora", "shift"):
        surgery.remove(whole, name)
        surgery.remove(parts, name)
        assert torch.equal(whole(x), parts(x))
