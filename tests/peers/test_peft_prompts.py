"""HF PEFT's prefixes and prompts with the same weights: the same logits, gradients and texts.

PEFT keeps a prefix in the cache, so the model counts it among the positions: `shifted` says so.
"""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.models import build

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore")

N = 3
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 11, 12, 13, 14]])
LEFT = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
NAMES = ["llama", "gpt2"]


def theirs(base: nn.Module, config: Any) -> Any:
    return peft.get_peft_model(copy.deepcopy(base), config).eval()


def with_prefix(name: str, network: bool = False) -> tuple[nn.Module, Any]:
    base = build(name)
    peer = theirs(
        base,
        peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=N,
            prefix_projection=network,
            encoder_hidden_size=7 if network else None,
        ),
    )
    width = peer.prompt_encoder["default"].embedding.weight.shape[1]
    method = f"prefix_mlp({N}, m = 7, width = {width})" if network else f"prefix({N})"
    spec = f"on attention apply {method} as p on tokens apply shifted({N})"
    ours = surgery.apply(base, spec, seed=0)
    encoder = peer.prompt_encoder["default"]
    torch.manual_seed(3)
    added = surgery.trainable(ours)
    sites = [s.path for s in surgery.select(ours, "attention")]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        for layer, site in enumerate(sites):
            fill(added, f"{site}.p.", encoder, layer, len(sites), network)
    return ours, peer


def fill(
    added: dict[str, Tensor], at: str, encoder: Any, layer: int, layers: int, network: bool
) -> None:
    def put(name: str, value: Tensor) -> None:
        if at + name in added:
            added[at + name].copy_(value.reshape(added[at + name].shape))

    table = encoder.embedding.weight
    if network:
        first, last = encoder.transform[0], encoder.transform[2]
        put("E", table)
        put("D", first.weight)
        put("d0", first.bias)
        for i, (matrix, bias) in enumerate((("K", "k0"), ("V", "v0"))):
            put(matrix, last.weight.unflatten(0, (2 * layers, -1))[2 * layer + i])
            put(bias, last.bias.unflatten(0, (2 * layers, -1))[2 * layer + i])
        return
    heads = added[at + "K"].shape[0]
    both = table.view(N, layers * 2, heads, -1)
    put("K", both[:, 2 * layer].transpose(0, 1))
    put("V", both[:, 2 * layer + 1].transpose(0, 1))


def with_prompt(name: str) -> tuple[nn.Module, Any]:
    base = build(name)
    peer = theirs(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N))
    ours = surgery.apply(base, f"on tokens apply prompt({N})", seed=0)
    (prompt,) = surgery.trainable(ours).values()
    with torch.no_grad():
        prompt.copy_(torch.randn(prompt.shape, generator=torch.Generator().manual_seed(3)))
        peer.prompt_encoder["default"].embedding.weight.copy_(prompt)
    return ours, peer


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_prefix(name: str, network: bool) -> None:
    ours, peer = with_prefix(name, network)
    for mask in (torch.ones_like(IDS), LEFT):
        with torch.no_grad():
            expected = peer(input_ids=IDS, attention_mask=mask).logits
            got = ours(input_ids=IDS, attention_mask=mask).logits
        real = mask.bool()
        torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_prompt(name: str) -> None:
    ours, peer = with_prompt(name)
    with torch.no_grad():
        expected = peer(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, N:]
        got = ours(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert got.shape[1] == IDS.shape[1]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_prompt_trains_alike(name: str) -> None:
    ours, peer = with_prompt(name)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    # PEFT's own loss also asks the last vector of the prompt for the first token.
    for logits in (peer(**given).logits[:, N:], ours(**given).logits):
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    (prompt,) = surgery.trainable(ours).values()
    gradient = peer.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(prompt.grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [with_prefix, with_prompt])
@pytest.mark.parametrize("name", NAMES)
def test_generates_alike(name: str, make: Any) -> None:
    ours, peer = make(name)
    # With a prompt PEFT counts padding among the positions, and generation here does not.
    for mask in (torch.ones_like(IDS), *([LEFT] if make is with_prefix else [])):
        given = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = peer.generate(input_ids=IDS, attention_mask=mask, **given)
        got = ours.generate(input_ids=IDS, attention_mask=mask, **given)
        assert torch.equal(got, expected), mask


READ = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 11, 12, 0, 0]])
RIGHT = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
WRITTEN = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
KINDS = {
    "prompt": (peft.PromptTuningConfig, {}, f"prompt({N})"),
    "mlp": (
        peft.PromptEncoderConfig,
        {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": 7},
        f"p_tuning({N}) prompt_mlp(7)",
    ),
    "lstm": (
        peft.PromptEncoderConfig,
        {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 5},
        f"p_tuning({N}) prompt_lstm(5)",
    ),
}


def in_encoder(name: str, kind: str) -> tuple[nn.Module, Any]:
    """A prompt in the encoder, whose states the decoder attends to, as PEFT has it."""
    base = build(name)
    config, more, method = KINDS[kind]
    peer = theirs(
        base,
        config(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=N,
            num_transformer_submodules=1,
            token_dim=32,
            num_attention_heads=4,
            num_layers=2,
            **more,
        ),
    )
    ours = surgery.apply(base, f"on tokens[0] apply {method}".replace("apply p_", "p_"), seed=0)
    encoder = peer.prompt_encoder["default"]
    torch.manual_seed(3)
    added = {n.rpartition(".")[2]: p for n, p in surgery.trainable(ours).items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
        for own, value in weights(encoder, kind).items():
            added[own].copy_(value)
    return ours, peer


def weights(encoder: Any, kind: str) -> dict[str, Tensor]:
    """PEFT's weights by the names that they have in the rules."""
    if kind == "prompt":
        return {"P": encoder.embedding.weight}
    table = {"E": encoder.embedding.weight}
    head = encoder.mlp_head
    if kind == "mlp":
        names = (("A", "a0"), ("B", "b0"), ("C", "c0"))
    else:
        names = (("D", "d0"), ("U", "u0"))
        for layer in range(2):
            for ours, theirs in (("I", "weight_ih"), ("H", "weight_hh"), ("i", "bias_ih")):
                table[f"{ours}{layer + 1}"] = both(encoder.lstm_head, theirs, layer)
            table[f"h{layer + 1}"] = both(encoder.lstm_head, "bias_hh", layer)
    for (matrix, bias), linear in zip(names, head[::2], strict=True):
        table |= {matrix: linear.weight, bias: linear.bias}
    return table


def both(lstm: nn.LSTM, name: str, layer: int) -> Tensor:
    return torch.stack([getattr(lstm, f"{name}_l{layer}{way}") for way in ("", "_reverse")])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoders_prompt_as_its_decoder_sees_it(name: str, kind: str) -> None:
    ours, peer = in_encoder(name, kind)
    given = {"input_ids": READ, "decoder_input_ids": WRITTEN}
    for mask in (torch.ones_like(READ), RIGHT):
        expected, got = (m(**given, attention_mask=mask).logits for m in (peer, ours))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        for more in ({}, {"num_beams": 3}, {"use_cache": False}):
            more = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **more}
            written = [
                m.generate(input_ids=READ, attention_mask=mask, **more) for m in (peer, ours)
            ]
            assert torch.equal(*written)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoders_prompt_trains_alike(name: str) -> None:
    ours, peer = in_encoder(name, "prompt")
    given = {"input_ids": READ, "attention_mask": RIGHT, "labels": WRITTEN}
    losses = [m(**given).loss for m in (peer, ours)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    (prompt,) = surgery.trainable(ours).values()
    gradient = peer.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(prompt.grad, gradient, rtol=1e-4, atol=1e-5)
