"""A layer is what its own forward makes of its weight, whatever class it comes from."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor, nn

import surgery
from tests.laws.own_forwards import Case, own_cases
from tests.laws.strategies import assert_near, assert_state, randomise_added, state_of


def trained(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return model.train()(x)


@settings(max_examples=60)
@given(own_cases())
def test_whatever_a_forward_does_the_promises_hold_or_the_spec_is_refused(case: Case) -> None:
    outcome(case)


def outcome(case: Case) -> str:
    """How a case ends: in a refusal that leaves nothing behind, or with every promise kept."""
    x, model, dtype = case.own.input(), case.base(), torch.float64
    model(x)  # what it keeps or writes, it keeps and writes from now on
    before, expected, in_training = state_of(model), model(x), trained(model, x)
    model.eval()
    try:
        plan = surgery.plan(model, case.spec, example_inputs=x).edits
        surgery.apply(model, case.spec, example_inputs=x, seed=0)
    except surgery.SurgeryError as problem:
        codes = {d.code for d in problem.diagnostics}
    else:
        codes = set[str]()
    if codes:
        assert codes <= {"S401", "S411", "S412", "S419"}
        assert_state(model, before)
        assert not must_work(case)
        return min(codes)
    if all(edit.derived.identity for edit in plan):
        assert_near(model(x), expected, dtype)
        if "dropout" not in case.spec and "dropout" not in case.own.before:
            assert_near(trained(model, x), in_training, dtype)
        model.eval()
    randomise_added(model)
    adapted = model(x)
    adapted.sum().backward()
    assert all(p.grad is not None for p in surgery.trainable(model).values())
    if all(edit.derived.merges for edit in plan):
        with surgery.merged(model):
            assert_near(model(x), adapted, dtype)
        assert torch.equal(model(x), adapted)
    surgery.remove(model)
    assert_state(model, before)
    assert torch.equal(model(x), expected)
    return "merges" if all(edit.derived.merges for edit in plan) else "stays"


def must_work(case: Case) -> bool:
    """Whether nothing stands in the way: a weight that is asked for, and methods that change it."""
    merging = all(
        method.startswith("apply") and "dropout" not in method and "ia3_input" not in method
        for method in case.applied
    )
    # A bias that the layer has not is added to its product, which a weight made of its own has not.
    own, shifts = case.own, any("shift" in method for method in case.applied)
    offset = not (shifts and own.lacks_bias and own.weight is not None)
    return merging and offset and own.is_followed and own.kind != "other"
