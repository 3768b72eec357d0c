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
method beside_the_norm(f: block) {
  match y = module(x, residual)
  y    += f(residual)
}
on mlp scaled(4) beside_the_norm adapter(4)
"""


def ours(fixture: Fixture, spec: str, values: Values, attention: str = "sdpa") -> Tensor:
    """What ``spec`` gives with ``values``, the parameters of each graft by its path."""
    model = fixture.model(attention)
    surgery.apply(model, spec, seed=0)
    put(model, values)
    return answer(model, fixture.inputs)


def agree(fixture: Fixture, spec: str, values: Values, attention: str = "sdpa") -> None:
    """Ours is what `adapters` gives at each token that is no padding."""
    real, given = fixture.real, ours(fixture, spec, values, attention)
    torch.testing.assert_close(given[real], fixture.after[real], rtol=1e-4, atol=1e-5)


def at(child: str, values: Values) -> Values:
    """From paths of modules to paths of the grafts on them."""
    return {f"{path}.{child}": table for path, table in values.items()}


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
def test_the_base(model: str) -> None:
    fixture = load(model, "lora")
    real = fixture.real
    before = answer(fixture.model(), fixture.inputs)
    torch.testing.assert_close(before[real], fixture.before[real])


@pytest.mark.parametrize("model", MODELS)
def test_lora(model: str) -> None:
    fixture = load(model, "lora")
    spec = "on q|v apply lora(2, alpha = 6)"
    if model == "gpt2":
        spec = "on qkv apply lora(4, alpha = 12)"  # q's update and v's as one of twice the rank
    agree(fixture, spec, at("lora", mapping.updates(fixture)))


@pytest.mark.parametrize("model", MODELS)
def test_ia3_scales_keys_values_and_what_the_first_linear_of_a_feed_forward_gives(
    model: str,
) -> None:
    fixture = load(model, "ia3")
    spec = f"on {'qkv' if model == 'gpt2' else 'k|v'}|up apply ia3"
    values = {path: {"l": scale} for path, scale in mapping.scales(fixture).items()}
    agree(fixture, spec, at("ia3", values))


BOTTLENECKS: dict[str, Callable[[str], str]] = {
    "pfeiffer": lambda model: "on mlp pfeiffer adapter(4)",
    "houlsby": lambda model: f"on {self_attention(model)}|mlp sequential adapter(4, act = silu)",
    "compacter": lambda model: f"on {self_attention(model)}|mlp sequential adapter(4, act = gelu)",
    "parallel": lambda model: (
        BESIDE_THE_NORM if model in PRE_NORM else "on mlp scaled(4) parallel adapter(4)"
    ),
}


def self_attention(model: str) -> str:
    """Cross attention has no adapters unless `cross_adapter` is set."""
    return "attention.self" if model in ENCODER_DECODERS else "attention"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", BOTTLENECKS)
def test_bottlenecks(method: str, model: str) -> None:
    fixture = load(model, method)
    agree(fixture, BOTTLENECKS[method](model), at("adapter", mapping.bottlenecks(fixture)))


def test_before_a_norm_a_parallel_adapter_of_ours_reads_something_else() -> None:
    """What the feed-forward reads, as in He et al. 2021, arXiv:2110.04366, figure 1."""
    fixture = load("gpt2", "parallel")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        agree(
            fixture,
            "on mlp scaled(4) parallel adapter(4)",
            at("adapter", mapping.bottlenecks(fixture)),
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", MODELS)
def test_prefixes(model: str, attention: str) -> None:
    fixture = load(model, "prefix")
    values = {path: {"K": k, "V": v} for path, (k, v) in mapping.prefixes(fixture).items()}
    agree(fixture, "on attention apply prefix(3)", at("prefix", values), attention)


@pytest.mark.parametrize("model", MODELS)
def test_prefixes_from_networks(model: str) -> None:
    agree(*prefix_networks(load(model, "prefix_mlp"), "apply"))


@pytest.mark.parametrize("model", MODELS)
def test_mix_and_match(model: str) -> None:
    fixture, prefixes, values = prefix_networks(load(model, "mam"), "apply")
    values |= at("adapter", mapping.bottlenecks(fixture))
    agree(fixture, f"{prefixes}\n{BOTTLENECKS['parallel'](model)}", values)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", MODELS)
def test_unipelt(model: str, attention: str) -> None:
    agree(*unipelt(model, average="mean"), attention)


def test_gates_of_ours_leave_padding_out_unless_told_otherwise() -> None:
    fixture, spec, values = unipelt("bert", average="pool")
    given = ours(fixture, spec, values)
    whole, *padded = (torch.isclose(given, fixture.after, rtol=1e-4, atol=1e-5).all(-1)).unbind()
    assert whole.all()
    assert not any(row.any() for row in padded)


def unipelt(model: str, average: str) -> tuple[Fixture, str, Values]:
    """The fixture, the spec and its parameters; ``average`` is what makes the gates."""
    gated = f"gated(average = {average})"
    fixture, spec, values = prefix_networks(load(model, "unipelt"), gated)
    gates = mapping.gates(fixture)
    values |= at("prefix_mlp.gated", {path: gates[path] for path in mapping.prefixes(fixture)})
    updates = mapping.updates(fixture)
    if model == "gpt2":
        for name in "qv":
            spec += f"\non qkv {gated} lora(2) as {name}"
        values |= of_fused_layers(updates, gates)
    else:
        spec += f"\non q|v {gated} lora(2)"
        values |= at("lora", updates) | at("lora.gated", {path: gates[path] for path in updates})
    adapters = mapping.bottlenecks(fixture)
    values |= at("adapter", adapters)
    values |= at("adapter.weighted", {path: gates[path] for path in adapters})
    return fixture, f"{spec}\non mlp pfeiffer weighted(average = {average}) adapter(4)", values


def of_fused_layers(updates: Values, gates: Values) -> Values:
    """Two grafts, of q and of v, for each layer that gives q, k and v."""
    values: Values = {}
    for path, table in updates.items():
        for row, name in enumerate("qv"):
            rank = slice(2 * row, 2 * row + 2)
            values[f"{path}.{name}"] = {"A": table["A"][rank], "B": table["B"][:, rank]}
            gate = {word: rows[row : row + 1] for word, rows in gates[path].items()}
            values[f"{path}.{name}.gated"] = gate
    return values


def prefix_networks(fixture: Fixture, verb: str) -> tuple[Fixture, str, Values]:
    """The fixture, what makes its prefixes, and their parameters.

    The shared part is at the first attention of its kind: of encoder, decoder and cross attention.
    """
    spec = f"on attention {verb} prefix_mlp(3, m = 6, width = 16)"
    values: Values = {}
    for path, made in mapping.networks(fixture).items():
        shared = {"E": made.E, "D": made.D, "d0": made.d0} if made.index == 0 else {}
        values[path] = {**shared, "K": made.K, "k0": made.k0, "V": made.V, "v0": made.v0}
    return fixture, spec, at("prefix_mlp", values)
