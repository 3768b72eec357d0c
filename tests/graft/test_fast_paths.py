"""PyTorch's shortcut for encoders in evaluation, which leaves padding out and gives zeros for it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import randomise_added
from tests.models import randomise

LENGTHS = {"right": [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [0] * 6], "none": [[0] * 6] * 3}
LENGTHS["left"] = [row[::-1] for row in LENGTHS["right"]]
SPECS = {
    "all": "on Linear apply lora(2)",
    "first": "on `encoder.layers.0.linear1` apply lora(2)",
    "last": "on `encoder.layers.1` sequential adapter(2)",
}


class Model(nn.Module):
    def __init__(self, norm: bool = True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16) if norm else None)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("side", LENGTHS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
# With gradients no shortcut is taken.
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_places_of_padding_are_those_of_the_base(
    spec: str, side: str, norm: bool, gradients: bool
) -> None:
    base = randomise(Model(norm)).eval()
    model, x, padding = copy.deepcopy(base), torch.randn(3, 6, 16), torch.tensor(LENGTHS[side]) == 1
    surgery.apply(model, spec, example_inputs=(x, padding), seed=0)
    with torch.set_grad_enabled(gradients):
        expected = base(x, padding)
        torch.testing.assert_close(model(x, padding), expected)
        randomise_added(model)
        adapted = model(x, padding)
        assert not torch.allclose(adapted, expected, atol=1e-2)
        assert torch.equal(copy.deepcopy(model)(x, padding), adapted)
        if "lora" in spec and not gradients:
            with surgery.merged(model):
                torch.testing.assert_close(model(x, padding), adapted)
        with surgery.disabled(model):
            assert torch.equal(model(x, padding), expected)
        surgery.remove(model)
        assert torch.equal(model(x, padding), expected)
    assert not any(module._forward_hooks for module in model.modules())
