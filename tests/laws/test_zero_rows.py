"""A row of zeros has no direction: DoRA neither divides by its norm nor leaves it out of training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import TOLERANCE, Holder, added, randomise_added
from tests.models import randomise

OWN = """
method own(r = 2) {
  match   y[*, n] = linear(x[*, m], W[n, m], b?)
  param   A[r, m] ~ kaiming_uniform(a = 1)
  param   B[n, r] = 0
  param   M[n]    = row_norm(W)
  y       = M / row_norm(W + B @ A) * linear(x, W + B @ A) + b
}
on `layer` apply own
"""
SPECS = {
    "dora": "on `layer` apply dora(2)",
    "norms with a gradient": OWN,
    "dora behind ia3": "on `layer` apply ia3 as first on `layer` apply dora(2) as second",
    "dora twice": "on `layer` apply dora(2) as first on `layer` apply dora(1) as second",
}


def transposed() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(4, 4)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(4, 4), lambda: torch.randn(2, 3, 4)),
    "without bias": (lambda: nn.Linear(4, 4, bias=False), lambda: torch.randn(3, 4)),
    "Conv1D": (transposed, lambda: torch.randn(2, 3, 4)),
    "convolution": (lambda: nn.Conv2d(4, 4, 2, groups=2), lambda: torch.randn(2, 4, 3, 3)),
    "embedding": (lambda: nn.Embedding(5, 4), lambda: torch.tensor([[0, 3], [4, 4]])),
}


def zeroed(make: Callable[[], nn.Module], dtype: torch.dtype, rows: slice) -> Holder:
    model = randomise(Holder(make()), 1).to(dtype)
    with torch.no_grad():
        rows_of(model.layer)[rows] = 0
    return model


def rows_of(layer: nn.Module) -> Tensor:
    """The layer's weight [outputs, inputs], in its own memory."""
    weight = layer.weight
    held = isinstance(layer, nn.Linear | nn.Conv2d)
    return weight.flatten(1) if held else weight.t()


@pytest.mark.parametrize("rows", [slice(1, 2), slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("layer", LAYERS)
def test_it_starts_as_its_base_trains_and_merges(
    layer: str, spec: str, dtype: torch.dtype, rows: slice
) -> None:
    make, draw = LAYERS[layer]
    torch.manual_seed(0)
    model, x = zeroed(make, dtype, rows), draw()
    x = x.to(dtype) if x.is_floating_point() else x
    base, near = model(x), {"atol": 4 * TOLERANCE[dtype], "rtol": 4 * TOLERANCE[dtype]}
    surgery.apply(model, SPECS[spec], example_inputs=x, seed=0)
    torch.testing.assert_close(model(x), base, **near)
    trained = surgery.trainable(model)
    lengths = next(p for n, p in trained.items() if n.endswith("M"))
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autograd.set_detect_anomaly(True):
            (model(x) - 1).square().mean().backward()
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
        optimizer.step()
    # Where its direction came from B, its length is learnt by M.
    assert lengths[rows].ne(0).all()
    after = model(x)
    assert after.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(model(x), after)
    with surgery.merged(model):
        torch.testing.assert_close(model(x), after, **near)


@pytest.mark.parametrize("spec", SPECS)
def test_no_derivative_of_any_order_is_nan(spec: str) -> None:
    model, x = zeroed(lambda: nn.Linear(4, 4), torch.float64, slice(1, 2)), torch.randn(3, 4)
    surgery.apply(model, SPECS[spec] + " train all", seed=0)
    model.double()
    wanted = list(model.parameters())
    found = [model(x.double()).pow(3).sum()]
    for _ in range(3):
        total = torch.stack([t.square().sum() for t in found]).sum()
        found = list(torch.autograd.grad(total, wanted, create_graph=True, materialize_grads=True))
        assert all(t.isfinite().all() for t in found)


def test_a_length_that_a_row_lost_is_no_infinity() -> None:
    """The weight was set to zero after DoRA's magnitude was read, or B and A cancel it."""
    model, x = Holder(nn.Linear(4, 4)), torch.randn(3, 4)
    surgery.apply(model, "on `layer` apply dora(2)", seed=0)
    assert model.layer.dora.M.gt(0).all()
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.dora.B.zero_()
    torch.testing.assert_close(model(x), model.layer.bias.expand(3, 4))
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in added(model).values())


def test_slices_and_read_weights_with_zeros() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = randomise(Attending(), 1), torch.randn(2, 3, 4)
    with torch.no_grad():
        model.attention.in_proj_weight[[0, 9]] = 0
    base = model(x)
    surgery.apply(model, "on q|v apply dora(2)", example_inputs=x, seed=0)
    torch.testing.assert_close(model(x), base)
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in surgery.trainable(model).values())
    randomise_added(model)
    assert model(x).isfinite().all()
