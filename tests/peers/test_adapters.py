"""The same weights in the library `adapters` and here: the same outputs.

What `adapters` gives is stored in `adapters/`, whose README says how it computes each method.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.peers.adapters import mapping
from tests.peers.adapters.fixtures import MODELS, Fixture, answer, load

pytestmark = pytest.mark.filterwarnings("ignore")

Values = dict[str, dict[str, Tensor]]

PRE_NORM = ("gpt2", "t5")
ENCODER_DECODERS = ("t5", "bart")

# Before a norm `adapters` reads the residual, not what the feed-forward reads.
BESIDE_THE_NORM = """
method beside_the_norm(f: block, gate = 1) {
  match y = module(x, residual)
  y    += gate * f(residual)
}
on mlp beside_the_norm(gate = 4) adapter(4)
"""


def agree(fixture: Fixture, spec: str, child: str, values: Values) -> None:
    """``values``: the parameters of each graft, by the module that it is at."""
    model, real = fixture.model(), fixture.real
    torch.testing.assert_close(answer(model, fixture.inputs)[real], fixture.before[real])
    surgery.apply(model, spec, seed=0)
    put(model, {f"{path}.{child}": table for path, table in values.items()})
    ours = answer(model, fixture.inputs)
    torch.testing.assert_close(ours[real], fixture.after[real], rtol=1e-4, atol=1e-5)


def put(model: nn.Module, values: Values) -> None:
    """Give every trainable parameter its value; there is one for each, and no more."""
    trainable = surgery.trainable(model)
    flat = {f"{path}.{name}": t for path, table in values.items() for name, t in table.items()}
    assert set(trainable) == set(flat)
    with torch.no_grad():
        for name, parameter in trainable.items():
            assert parameter.shape == flat[name].shape, name
            parameter.copy_(flat[name])


@pytest.mark.parametrize("model", MODELS)
def test_lora(model: str) -> None:
    fixture = load(model, "lora")
    spec = "on q|v apply lora(2, alpha = 6)"
    if model == "gpt2":
        spec = "on qkv apply lora(4, alpha = 12)"  # q's update and v's as one of twice the rank
    agree(fixture, spec, "lora", mapping.updates(fixture))


@pytest.mark.parametrize("model", MODELS)
def test_ia3_scales_keys_values_and_what_the_first_linear_of_a_feed_forward_gives(
    model: str,
) -> None:
    fixture = load(model, "ia3")
    spec = f"on {'qkv' if model == 'gpt2' else 'k|v'}|up apply ia3"
    agree(fixture, spec, "ia3", {p: {"l": scale} for p, scale in mapping.scales(fixture).items()})


BOTTLENECKS: dict[str, Callable[[str], str]] = {
    "pfeiffer": lambda model: "on mlp pfeiffer adapter(4)",
    "houlsby": lambda model: f"on {attention(model)}|mlp sequential adapter(4, act = silu)",
    "compacter": lambda model: f"on {attention(model)}|mlp sequential adapter(4, act = gelu)",
    "parallel": lambda model: (
        BESIDE_THE_NORM if model in PRE_NORM else "on mlp parallel(gate = 4) adapter(4)"
    ),
}


def attention(model: str) -> str:
    """Cross attention has no adapters unless `cross_adapter` is set."""
    return "attention.self" if model in ENCODER_DECODERS else "attention"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", BOTTLENECKS)
def test_bottlenecks(method: str, model: str) -> None:
    fixture = load(model, method)
    agree(fixture, BOTTLENECKS[method](model), "adapter", mapping.bottlenecks(fixture))


def test_before_a_norm_a_parallel_adapter_of_ours_reads_something_else() -> None:
    """What the feed-forward reads, as in He et al. 2021, arXiv:2110.04366, figure 1."""
    fixture = load("gpt2", "parallel")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        agree(
            fixture,
            "on mlp parallel(gate = 4) adapter(4)",
            "adapter",
            mapping.bottlenecks(fixture),
        )
