"""Before training: the base's outputs, its names, and the same bits for the same seed."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import surgery
from tests.laws.strategies import (
    EVERY,
    SAME_PADDING,
    Case,
    added,
    assert_near,
    cases,
    same_bits,
    snapshot,
)

pytestmark = SAME_PADDING
# These call the layer's own forward and add to what it gives.
ADDING = ("lora", "rslora", "vera", "loha", "lokr", "shift", "sequential", "parallel", "gated")


@settings(max_examples=60)
@given(cases(EVERY))
def test_a_model_starts_as_its_base(case: Case) -> None:
    x = case.input()
    base = case.base()(x)
    plan = surgery.plan(case.base(), case.spec)
    starts = case.fresh()(x)
    assert all(edit.derived.identity for edit in plan.edits)
    assert_near(starts, base, case.dtype)


@settings(max_examples=60)
@given(cases(ADDING, most=2))
def test_what_only_adds_starts_as_the_very_bits(case: Case) -> None:
    x = case.input()
    if "gated" in case.spec and (x.dim() != 3 or not x.is_floating_point()):
        return
    assert torch.equal(case.fresh()(x), case.base()(x))


@given(cases(EVERY))
def test_names_stay_and_a_base_checkpoint_loads(case: Case) -> None:
    model, base = case.adapted(), case.base()
    before = base.state_dict()
    now = model.state_dict()
    assert list(before) == [n for n in now if n in before]
    assert all(torch.equal(now[n], before[n]) for n in before)
    assert isinstance(model.layer, type(base.layer))
    kept = snapshot(model)
    other = {n: t + 1 for n, t in before.items()}
    result = model.load_state_dict(other, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == set(added(model))
    moved = model.state_dict()
    assert all(torch.equal(moved[n], other[n]) for n in other)
    assert all(torch.equal(moved[n], kept[n]) for n in added(model))


@given(cases(EVERY))
def test_a_seed_decides_every_bit(case: Case) -> None:
    first, again = snapshot(case.fresh(seed=5)), snapshot(case.fresh(seed=5))
    assert same_bits(first, again)
    plan = surgery.plan(case.base(), case.spec)
    random = [t.name for t in plan.tensors if "(" in t.init and t.init.split("(")[0] != "row_norm"]
    other = case.fresh(seed=6).state_dict()
    drawn = [n for n in random if other[n].any() and other[n].numel() > 3]
    assert all(not torch.equal(first[n], other[n]) for n in drawn)


def test_without_a_seed_torch_decides() -> None:
    def drawn() -> dict[str, torch.Tensor]:
        model = nn.Sequential(nn.Linear(4, 3))
        torch.manual_seed(3)
        return snapshot(surgery.apply(model, "on `0` apply lora(r = 2)")[0].lora)

    assert same_bits(drawn(), drawn())


@pytest.mark.parametrize("method", ["lora(2)", "vera(2)", "dora(2)", "lokr(2)"])
@pytest.mark.parametrize("seed", [3, None])
def test_what_is_drawn_does_not_depend_on_torchs_defaults(method: str, seed: int | None) -> None:
    def drawn() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return snapshot(surgery.apply(copy.deepcopy(base), f"on `0` apply {method}", seed=seed))

    base = nn.Sequential(nn.Linear(4, 4, dtype=torch.float32))
    expected = drawn()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert same_bits(drawn(), expected)
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert same_bits(drawn(), expected)


@pytest.mark.parametrize("seed", ["3", 1.5, True, [3]])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(surgery.SurgeryError, match="S548"):
        surgery.apply(model, "on `0` apply lora(2)", seed=seed)  # type: ignore[arg-type]
    assert not any("lora" in name for name, _ in model.named_parameters())
