"""Rules that name dims, on every kind of layer: identity, merge and undo follow for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import Holder, assert_near, randomise_added, snapshot
from tests.models import randomise

METHODS = {
    "oft(2)": True,
    "gralora(2)": True,
    "miss(2)": True,
    "mora(2)": True,
    "randlora(3)": True,
    "ether(3)": False,
    "road(4)": True,
    "tinylora(1, u = 3)": True,
    "vblora(2, bank = 5, length = 2)": False,
}
"""With whether each starts as the identity."""
FLOATS = torch.float64


def _transposed() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(4, 6)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "one example": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "conv1d": (_transposed, (2, 3, 6)),
    "convolution": (lambda: nn.Conv2d(2, 4, (1, 3), padding=1), (2, 2, 5, 4)),
    "grouped": (lambda: nn.Conv1d(4, 8, 3, groups=2), (2, 4, 7)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    "embedding": (lambda: nn.Embedding(8, 6), None),
}


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    model = randomise(Holder(make()), 1).to(FLOATS).eval()
    return model, torch.randint(0, 8, (2, 5)) if shape is None else torch.randn(shape).to(FLOATS)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_identity_merge_and_undo(method: str, kind: str) -> None:
    model, x = made(kind)
    before, expected = snapshot(model), model(x)
    spec = f"on `layer` apply {method}"
    assert ("Identity at init" in str(surgery.diff(model, spec, example_inputs=x))) == METHODS[
        method
    ]
    surgery.apply(model, spec, example_inputs=x, seed=0)
    assert torch.allclose(model(x), expected, atol=1e-12) or not METHODS[method]
    randomise_added(model)
    adapted = model(x)
    assert not torch.allclose(adapted, expected, atol=1e-3)
    with surgery.merged(model):
        assert_near(model(x), adapted, FLOATS)
    # In training the same: nothing here is drawn.
    assert_near(model.train()(x), adapted, FLOATS)
    adapted.sum().backward()
    for name, parameter in surgery.trainable(model).items():
        assert parameter.grad is not None, name
    surgery.remove(model)
    after = snapshot(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
