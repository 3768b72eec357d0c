"""Outputs, gradients and merges against the equations, composed by hand in the order written."""

import copy

import torch
from hypothesis import given, settings
from torch import nn

import surgery
from tests.laws.reference import effective, own, run
from tests.laws.strategies import (
    MERGING,
    SAME_PADDING,
    Case,
    added,
    assert_near,
    cases,
)

pytestmark = SAME_PADDING


@settings(max_examples=80)
@given(cases(MERGING, dtypes=(torch.float64,)))
def test_outputs_and_gradients_are_those_of_the_equations(case: Case) -> None:
    model, x = case.adapted(), case.input()
    ours = {n.removeprefix("layer."): p for n, p in added(model).items()}
    theirs = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in ours.items()}
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    base = case.base().layer
    outputs = model(inputs[0]), run(base, effective(base, case.methods, theirs), inputs[1])
    assert_near(*outputs, torch.float64)
    weights = torch.randn(outputs[0].shape, dtype=torch.float64)
    for output in outputs:
        (output * weights).sum().backward()
    for name, parameter in ours.items():
        if parameter.requires_grad:
            assert_near(parameter.grad, theirs[name].grad, torch.float64)
        else:
            assert parameter.grad is None
    if x.is_floating_point():
        assert_near(inputs[0].grad, inputs[1].grad, torch.float64)


@settings(max_examples=80)
@given(cases(MERGING))
def test_the_merge_is_the_composition_by_hand(case: Case) -> None:
    """Merged weights are rounded once, so they are as near as the dtype allows."""
    model, base = case.adapted(), case.base().layer
    wide = {n.removeprefix("layer."): p.detach().double() for n, p in added(model).items()}
    reference = copy.deepcopy(base).double()
    W, b = effective(reference, case.methods, wide)
    surgery.merge(model)
    now = own(model.layer)
    if isinstance(model.layer, nn.Embedding):
        # One-hot inputs sum to one: the bias is in every row.
        W, b = W + b.unsqueeze(1), torch.zeros_like(b)
    assert_close_to_last_place(now[0], W)
    assert_close_to_last_place(now[1], b)


def assert_close_to_last_place(actual: torch.Tensor, expected: torch.Tensor) -> None:
    wide = max(torch.finfo(actual.dtype).eps, 1e-5 if actual.dtype != torch.float64 else 1e-13)
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=wide, atol=wide)


@given(cases(MERGING, dtypes=(torch.bfloat16, torch.float32)))
def test_outputs_are_as_near_to_exact_ones_as_the_dtype_allows(case: Case) -> None:
    model, x = case.adapted(), case.input()
    exact = copy.deepcopy(model).double()
    wide = x.double() if x.is_floating_point() else x
    assert_near(model(x), exact(wide), case.dtype)
    with surgery.merged(model):
        assert_near(model(x), exact(wide), case.dtype)
