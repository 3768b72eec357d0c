"""Decompositions: factors of a matrix, the same ones whatever the library gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.graft.graphs.decompositions import minor_svd, qr, svd
from tests.laws.strategies import Holder
from tests.models import randomise

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))


@given(sizes)
def test_the_factors_give_the_matrix_back(drawn: tuple[int, int, int]) -> None:
    n, m, seed = drawn
    matrix = torch.randn(n, m, generator=torch.Generator().manual_seed(seed)).double()
    whole = min(n, m)
    left, values, right = svd(matrix, whole)
    torch.testing.assert_close(left * values @ right, matrix)
    torch.testing.assert_close(left.T @ left, torch.eye(whole).double())
    first, second = qr(matrix, whole)
    torch.testing.assert_close(first @ second, matrix)
    for r in range(1, whole):
        major, minor = svd(matrix, r), minor_svd(matrix, whole - r)
        parts = [u * s @ v for u, s, v in (major, minor)]
        torch.testing.assert_close(parts[0] + parts[1], matrix)
        assert major[1].min() >= minor[1].max()


@given(sizes)
def test_signs_do_not_depend_on_those_of_the_library(drawn: tuple[int, int, int]) -> None:
    n, m, seed = drawn
    matrix = torch.randn(n, m, generator=torch.Generator().manual_seed(seed)).double()
    left, _, _ = svd(matrix, min(n, m))
    highest = left.gather(0, left.abs().argmax(0, keepdim=True))
    assert (highest > 0).all()
    assert (qr(matrix, min(n, m))[1].diagonal() >= 0).all()


@pytest.mark.parametrize("method", ["pissa(2)", "milora(2)", "olora(2)", "lora_xs(2)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 4), nn.Conv1d(2, 4, 3), nn.Embedding(5, 4)],
    ids=lambda x: type(x).__name__,
)
def test_the_start_is_the_base_to_the_bit(
    method: str, dtype: torch.dtype, layer: nn.Module
) -> None:
    model = randomise(Holder(layer), 1).to(dtype).eval()
    x = {
        nn.Linear: torch.randn(3, 6),
        nn.Conv1d: torch.randn(2, 2, 5),
        nn.Embedding: torch.arange(5),
    }[type(layer)]
    x = x.to(dtype) if x.is_floating_point() else x
    before, weight = model(x), layer.weight.clone()
    spec = f"on `layer` apply {method}"
    assert "Identity at init" in str(surgery.diff(model, spec, example_inputs=x))
    surgery.apply(model, spec, example_inputs=x, seed=0)
    if dtype != torch.bfloat16:
        torch.testing.assert_close(model(x), before)
    surgery.remove(model)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(model(x), before)
