"""Attentions of transformers models with new keys in front, held against attention by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.inputs import example_inputs
from surgery.anatomy.read import read
from tests.graft.attending import Prefix, by_hand, give, plainly, wire
from tests.models import build, randomise

BY_INTERFACE = """
    llama qwen2 qwen3 mistral gemma gemma2 cohere phi phi3 gpt_neox mixtral gpt2 opt bert roberta
    electra albert distilbert t5 bart whisper vit clip
    """


def first(output: Any) -> Tensor:
    """The logits or hidden states of an output."""
    if isinstance(output, Tensor):
        return output
    return next(v for v in output.values() if isinstance(v, Tensor) and v.is_floating_point())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", BY_INTERFACE.split())
def test_as_by_hand(name: str, implementation: str) -> None:
    model = build(name)
    if name != "gemma2" or implementation == "eager":
        model.set_attn_implementation(implementation)
    args, kwargs = example_inputs(model)
    before = first(model(*args, **kwargs))
    wire(model)
    with plainly(model):
        expected = first(model(*args, **kwargs))
    found = first(model(*args, **kwargs))
    assert (found - before).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sinks(implementation: str) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        pad_token_id=0,
    )
    model = randomise(GptOssForCausalLM(config)).eval()
    ids = torch.randint(3, 96, (2, 7))
    wire(model)
    with plainly(model):
        expected = model(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_einsums_over_the_length_first() -> None:
    """XLNet's own attention, whose scores are a sum of those of keys and those of positions."""
    from transformers import XLNetConfig, XLNetModel

    config = XLNetConfig(vocab_size=96, d_model=32, n_layer=1, n_head=4, d_inner=48)
    model = randomise(XLNetModel(config)).eval()
    attention = model.layer[0].rel_attn
    prefix = Prefix(AttentionCore("", 0, "products", 4, 4, 8, 8))
    give(attention, prefix)
    ids = torch.randint(3, 96, (2, 5))
    seen: list[tuple[Tensor, ...]] = []
    core = attention.rel_attn_core

    def kept(*operands: Tensor, **rest: Any) -> Tensor:
        seen.append((core(*operands, **rest), *operands))
        return seen[0][0]

    attention.rel_attn_core = kept
    model(ids)
    found, q, k, v, positions = seen[0]
    moved = [t.permute(1, 2, 0, 3) for t in (q + attention.r_w_bias, k, v)]
    apart = torch.einsum("ibnd,jbnd->bnij", q + attention.r_r_bias, positions)
    bias = attention.rel_shift_bnij(apart, klen=k.shape[0]) * attention.scale
    expected = by_hand(*moved, prefix.k, prefix.v, bias).permute(2, 0, 1, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "bart"])
def test_padding(name: str, side: str, implementation: str) -> None:
    """What is computed of a padded sequence is what is computed of it alone."""
    model = build(name)
    model.set_attn_implementation(implementation)
    if name == "mistral":
        model.config.sliding_window = 4
    wire(model)
    ids = torch.randint(3, 96, (2, 7))
    mask = torch.ones_like(ids)
    kept = slice(3, None) if side == "left" else slice(4)
    mask[1] = 0
    mask[1, kept] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    extra = {"position_ids": positions} if name in ("llama", "mistral") else {}
    if name == "bart":
        extra = {"decoder_input_ids": torch.randint(3, 96, (2, 5))}
    found = first(model(ids, attention_mask=mask, **extra))
    if name == "bart":
        alone = first(model(ids[1:, kept], decoder_input_ids=extra["decoder_input_ids"][1:]))
        # Learnt positions move with what is left of them.
        if side == "right":
            torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)
    elif extra or side == "right":
        alone = first(model(ids[1:, kept]))
        torch.testing.assert_close(found[1:, kept], alone, rtol=1e-4, atol=1e-5)
    with plainly(model):
        expected = first(model(ids, attention_mask=mask, **extra))
    if name != "bart":
        found, expected = found[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("way", GENERATIONS)
@pytest.mark.parametrize("name", ["llama", "mistral", "t5", "bart"])
def test_generation(name: str, way: str) -> None:
    if name in ("t5", "bart") and way == "static cache":
        pytest.skip("encoder-decoders are generated from with the other kinds of cache")
    model = build(name)
    wire(model)
    ids = torch.randint(3, 96, (2, 5))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "disable_compile": True}
    settings |= {"attention_mask": mask, **GENERATIONS[way]}
    settings |= {"output_scores": True, "return_dict_in_generate": True}
    found = model.generate(ids, **settings)
    with plainly(model):
        expected = model.generate(ids, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_checkpointing_recomputes_with_new_keys(implementation: str, reentrant: bool) -> None:
    model = build("llama").train()
    model.set_attn_implementation(implementation)
    prefixes = wire(model)
    ids = torch.randint(3, 96, (2, 5))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        for prefix in prefixes:
            prefix.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [
            p.grad.clone() for prefix in prefixes for p in prefix.parameters() if p.grad is not None
        ]

    plain = gradients()
    assert all(bool(g.abs().max() > 0) for g in plain)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    torch.testing.assert_close(gradients(), plain)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_autocast(implementation: str) -> None:
    model = build("llama")
    model.set_attn_implementation(implementation)
    wire(model)
    ids = torch.randint(3, 96, (2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids).logits
    torch.testing.assert_close(rough.float(), model(ids).logits, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["gptj", "mpt", "deberta", "bloom", "gemma2"])
def test_computing_own_scores_anew_gives_the_same(name: str, own: bool) -> None:
    torch.manual_seed(1)
    model = build(name)
    args, kwargs = example_inputs(model)
    state = torch.get_rng_state()
    wire(model, own=own)
    found = first(model(*args, **kwargs))
    torch.set_rng_state(state)
    other = build(name)
    wire(other, own=not own)
    torch.testing.assert_close(found, first(other(*args, **kwargs)), rtol=1e-4, atol=1e-5)
    assert read(build(name)).places["attention"][0].core.how == "products"
