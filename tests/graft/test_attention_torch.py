"""PyTorch's own attention modules with new keys in front, held against attention by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.read import read
from tests.graft.attending import Prefix, by_hand, give
from tests.models import randomise

BATCH, LENGTH, MEMORY, HEADS, FEATURES = 2, 5, 7, 4, 6
WIDTH = HEADS * FEATURES


def attention(**settings: Any) -> tuple[nn.MultiheadAttention, Prefix]:
    made = nn.MultiheadAttention(WIDTH, HEADS, **settings)
    randomise(made, torch.randint(1 << 30, ()).item()).eval()
    prefix = Prefix(AttentionCore("", 0, "fused", HEADS, HEADS, FEATURES, FEATURES))
    give(made, prefix)
    return made, prefix


def computed(
    made: nn.MultiheadAttention, prefix: Prefix, q: Tensor, kv: Tensor, mask: Tensor | None = None
) -> Tensor:
    """What ``made`` is to compute, of the batch first; ``mask`` is one to add."""
    weights = made.in_proj_weight.chunk(3)
    biases = made.in_proj_bias.chunk(3)
    parts = [
        functional.linear(x, w, b) for x, w, b in zip((q, kv, kv), weights, biases, strict=True)
    ]
    if made.bias_k is not None and made.bias_v is not None:
        for i, bias in ((1, made.bias_k), (2, made.bias_v)):
            parts[i] = torch.cat([parts[i], bias.expand(q.shape[0], -1, -1)], 1)
    if made.add_zero_attn:
        parts[1:] = [functional.pad(part, (0, 0, 0, 1)) for part in parts[1:]]
    if mask is not None:
        mask = functional.pad(mask, (0, parts[1].shape[1] - mask.shape[-1]))
    spread = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]
    out = by_hand(*spread, prefix.k, prefix.v, mask)
    return made.out_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("weights", [False, True], ids=["fused", "products"])
@pytest.mark.parametrize("masked", ["open", "mask", "padding", "both"])
@pytest.mark.parametrize("settings", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention(
    batch_first: bool, settings: Any, masked: str, weights: bool, gradients: bool
) -> None:
    made, prefix = attention(batch_first=batch_first, **settings)
    q, kv = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, MEMORY, WIDTH)
    given: dict[str, Any] = {"need_weights": weights}
    mask = torch.zeros(BATCH, 1, LENGTH, MEMORY)
    if masked in ("mask", "both"):
        given["attn_mask"] = torch.rand(LENGTH, MEMORY) < 0.4
        mask = mask.masked_fill(given["attn_mask"], float("-inf"))
    if masked in ("padding", "both"):
        given["key_padding_mask"] = torch.arange(MEMORY) >= torch.tensor([[4], [MEMORY]])
        mask = mask.masked_fill(given["key_padding_mask"][:, None, None], float("-inf"))
    sides = (q, kv) if batch_first else (q.transpose(0, 1), kv.transpose(0, 1))
    with torch.set_grad_enabled(gradients):
        found, seen = made(*sides, sides[1], **given)
    found = found if batch_first else found.transpose(0, 1)
    torch.testing.assert_close(found, computed(made, prefix, q, kv, mask))
    assert (seen is not None) == weights


def test_unbatched() -> None:
    made, prefix = attention()
    x = torch.randn(LENGTH, WIDTH)
    for weights in (False, True):
        found, _ = made(x, x, x, need_weights=weights)
        torch.testing.assert_close(found, computed(made, prefix, x[None], x[None])[0])


def test_causal() -> None:
    made, prefix = attention(batch_first=True)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    found, _ = made(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
    torch.testing.assert_close(found, computed(made, prefix, x, x, mask))


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_decoder_layer(gradients: bool) -> None:
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True)
    randomise(layer, 3).eval()
    x, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, MEMORY, WIDTH)
    places = read(layer, (x, memory)).places
    (own,), (cross,) = places["attention.self"], places["attention.cross"]
    assert own.core == AttentionCore("self_attn", 0, "fused", HEADS, HEADS, FEATURES, FEATURES)
    assert cross.core == AttentionCore(
        "multihead_attn", 0, "fused", HEADS, HEADS, FEATURES, FEATURES
    )
    prefixes = [Prefix(own.core), Prefix(cross.core)]
    give(layer.self_attn, prefixes[0])
    give(layer.multihead_attn, prefixes[1])
    wanted = layer.norm1(x + computed(layer.self_attn, prefixes[0], x, x))
    wanted = layer.norm2(wanted + computed(layer.multihead_attn, prefixes[1], wanted, memory))
    wanted = layer.norm3(wanted + layer.linear2(layer.activation(layer.linear1(wanted))))
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(x, memory), wanted)


def test_multihead_attention_compiled_as_one_graph() -> None:
    made, prefix = attention(batch_first=True)
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(BATCH, LENGTH, WIDTH)
    for weights in (False, True):
        found, _ = compiled(x, x, x, need_weights=weights)
        torch.testing.assert_close(found, computed(made, prefix, x, x))
        assert bool(torch.autograd.grad(found.square().sum(), prefix.k)[0].abs().max() > 0)
