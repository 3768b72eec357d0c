"""What merges goes into the layers, and what stays is then an adaptation of the merged base."""

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import randomise_added

RULE = """
method rectified() {
  "A rectifier behind the layer: no one weight computes the same."
  match y[*, n] = linear(x[*, m], W, b?)
  param s[n] = 1
  y = s * relu(y)
}
"""
LAYERS = {
    "linear": (lambda bias: nn.Linear(6, 6, bias=bias), (3, 6)),
    "convolution": (lambda bias: nn.Conv1d(6, 6, 3, padding=1, bias=bias), (3, 6, 5)),
}


def stack(kind: str, bias: bool) -> nn.Module:
    torch.manual_seed(0)
    make, _ = LAYERS[kind]
    return nn.Sequential(make(bias), nn.ReLU(), make(bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["shift", "lora(2)", "ia3"])
@pytest.mark.parametrize("kind", LAYERS)
def test_what_stays_is_saved_for_the_merged_base(
    kind: str, method: str, bias: bool, tmp_path
) -> None:
    layer = "Linear" if kind == "linear" else "Conv1d"
    inputs: Tensor = torch.randn(LAYERS[kind][1], generator=torch.Generator().manual_seed(1))
    spec = f"{RULE} on {layer} apply {method} on `2` apply rectified"
    model = randomise_added(surgery.apply(stack(kind, bias), spec, seed=0))
    adapted = model(inputs)
    with surgery.merged(model):
        torch.testing.assert_close(model(inputs), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(inputs), adapted)

    surgery.merge(model)
    merged = model(inputs)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    surgery.save(model, tmp_path)
    with pytest.raises(surgery.SurgeryError) as raised:
        surgery.load(stack(kind, bias), tmp_path)
    assert raised.value.diagnostics[0].code == "S515"

    base = {name: t for name, t in model.state_dict().items() if "rectified" not in name}
    fresh = stack(kind, "0.bias" in base)
    fresh.load_state_dict(base)
    assert torch.equal(surgery.load(fresh, tmp_path)(inputs), merged)
    surgery.remove(model)
    surgery.remove(fresh)
    assert torch.equal(model(inputs), fresh(inputs))
