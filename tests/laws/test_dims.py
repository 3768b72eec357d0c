"""Rules that name dims, on every kind of layer: identity, merge and undo follow for them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import surgery
from tests.laws.strategies import Holder, assert_near, randomise_added, snapshot
from tests.models import randomise

METHODS = {
    "c3a(2)": True,
    "hra(2)": True,
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
    # Equal pairs of reflectors undo each other, which numbers show and algebra does not.
    said = "may change" if method.startswith("hra") else "Identity" * METHODS[method] or "Changes"
    assert said.lower() in str(surgery.diff(model, spec, example_inputs=x)).lower()
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


class Two(nn.Module):
    """A layer with its features last, and one with them in front of the places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.layer(x).transpose(1, 2))


@pytest.mark.parametrize(
    "method", ["hra(2)", "road(4)", "vblora(2, bank = 5, length = 4)", "c3a(4)"]
)
def test_graphs_programs_and_compiled_models_compute_the_same(method: str) -> None:
    torch.manual_seed(0)
    base, x = randomise(Two(), 1).eval(), torch.randn(2, 5, 8)
    spec = f"on `layer`|`conv` apply {method} as it"
    eager = surgery.apply(copy.deepcopy(base), spec, seed=0, example_inputs=x)
    graph = surgery.apply(fx.symbolic_trace(copy.deepcopy(base)), spec, seed=0, example_inputs=x)
    program = surgery.apply(torch.export.export(copy.deepcopy(base), (x,)), spec, seed=0)
    values = dict(randomise_added(eager).named_parameters())
    with torch.no_grad():
        for tensors in (dict(graph.named_parameters()), program.state_dict):
            for name, tensor in tensors.items():
                if ".it." in name:
                    tensor.copy_(values[name])
    expected = eager(x)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for model in (graph, program.module(), compiled):
        torch.testing.assert_close(model(x), expected)
