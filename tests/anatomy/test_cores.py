"""What sites tell of attention cores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.read import read
from tests.models import build, randomise

# path of the first core, how it runs as loaded, heads of queries and of keys; 8 features each
FIRST = {
    "llama": ("model.layers.0.self_attn", "fused", 4, 2),
    "phi3": ("model.layers.0.self_attn", "fused", 4, 2),
    "gemma2": ("model.layers.0.self_attn", "products", 4, 2),
    "mixtral": ("model.layers.0.self_attn", "fused", 4, 2),
    "gpt2": ("transformer.h.0.attn", "fused", 4, 4),
    "gptj": ("transformer.h.0.attn", "products", 4, 4),
    "falcon": ("transformer.h.0.self_attention", "fused", 4, 1),
    "bloom": ("transformer.h.0.self_attention", "products", 4, 4),
    "mpt": ("transformer.blocks.0.attn", "products", 4, 4),
    "bert": ("encoder.layer.0.attention.self", "fused", 4, 4),
    "albert": ("encoder.albert_layer_groups.0.albert_layers.0.attention", "fused", 4, 4),
    "deberta": ("encoder.layer.0.attention.self", "products", 4, 4),
    "t5": ("encoder.block.0.layer.0.SelfAttention", "fused", 4, 4),
    "bart": ("model.encoder.layers.0.self_attn", "fused", 4, 4),
    "vit": ("vit.layers.0.attention", "fused", 4, 4),
    "encoder_layer": ("self_attn", "fused", 4, 4),
    "nanogpt": ("transformer.h.0.attn", "fused", 4, 4),
}


@pytest.mark.parametrize("name", FIRST)
def test_first_core(name: str) -> None:
    path, how, query_heads, heads = FIRST[name]
    places = read(build(name)).places
    core = places["attention"][0].core
    assert core == AttentionCore(path, 0, how, query_heads, heads, 8, 8)
    for role in ("attention", "attention.self", "attention.cross"):
        for site in places.get(role, ()):
            assert site.core is not None
            assert site.core.obstacle is None
    assert all(site.core is None for site in places.get("mlp", ()))


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3", "mixtral"])
def test_products_tell_the_same_as_the_function(name: str) -> None:
    model = build(name)
    fused = read(model).places["attention"][0].core
    model.set_attn_implementation("eager")
    products = read(model).places["attention"][0].core
    assert fused is not None
    assert products == AttentionCore(fused.path, 0, "products", 4, 2, 8, 8)


def test_heads_repeated_before_their_positions_are_worked_in() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
    )
    core = read(FalconForCausalLM(config)).places["attention"][0].core
    assert core is not None
    assert (core.query_heads, core.heads) == (4, 2)


def test_keys_and_values_of_different_sizes() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        first_k_dense_replace=1,
    )
    core = read(DeepseekV3ForCausalLM(config)).places["attention"][0].core
    assert core is not None
    assert (core.keys, core.values) == (12, 6)


def test_queries_and_context_of_windows() -> None:
    """Blocks that have as many places as there are heads are not taken for queries."""
    from transformers import LongformerConfig, LongformerModel

    settings = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "attention_window": 4}
    heads = {"num_attention_heads": 4, "intermediate_size": 48}
    made = randomise(LongformerModel(LongformerConfig(**settings, **heads)))
    core = read(made).places["attention"][0].core
    assert core is not None
    assert core.windows is not None
    assert (core.query_heads, core.heads_at, core.keys) == (4, 2, 8)
    assert core.windows.cuts[-1] == "reshape"
    assert core.windows.queries == core.windows.context == (0, 2, 1, 3)


class TwoInOne(nn.Module):
    """Two attentions whose linears are the children of one module."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, nn.Linear(16, 48 if name in "ac" else 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.a(x).chunk(3, -1)
        x = x + self.b((q @ k.mT / 4).softmax(-1) @ v)
        q, k, v = self.c(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.d(y.transpose(1, 2).flatten(2))


def test_cores_of_one_module_are_told_apart_by_their_order() -> None:
    one, other = read(randomise(TwoInOne()), torch.randn(2, 5, 16)).places["attention"]
    assert one.core == AttentionCore("", 0, "products", 1, 1, 16, 16, among=2)
    assert other.core == AttentionCore("", 1, "fused", 4, 4, 4, 4, among=2)


class Differential(nn.Module):
    """Attends by the difference of two softmaxes, after Ye et al. 2024."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 32), nn.Linear(16, 32)
        self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = (
            (q @ k.mT / 4).softmax(-1)
            for q, k in zip(self.q(x).chunk(2, -1), self.k(x).chunk(2, -1), strict=True)
        )
        v = self.v(x)
        return x + self.o(one @ v - 0.5 * (other @ v))


class Uneven(Differential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        ends = (slice(0, 12), slice(12, 32))
        one, other = ((q[..., e] @ k[..., e].mT).softmax(-1) @ v for e in ends)
        return x + self.o(one - 0.5 * other)


class Transposed(Differential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = (q @ k.mT / 4).softmax(-1)
        return x + self.o((v.mT @ weights.mT).mT)


class Upright(Differential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = (k @ q.mT / 4).softmax(1)
        return x + self.o(weights.mT @ v)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Uneven, "of different sizes"),
        (Transposed, "then of weights with values"),
        (Upright, "not over the last axis"),
    ],
)
def test_obstacles(made: type[nn.Module], why: str) -> None:
    core = read(randomise(made()), torch.randn(2, 5, 16)).places["attention"][0].core
    assert core is not None
    assert core.obstacle is not None
    assert why in core.obstacle


def test_equal_cores_of_one_place_change_alike() -> None:
    """Differential attention takes the difference of two softmaxes."""
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

    import surgery

    config = DiffLlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = DiffLlamaForCausalLM(config).eval()
    for role in ("attention", "attention.self"):
        for site in surgery.select(model, role):
            assert site.core is not None
            assert [core.order for core in site.core.each] == [0, 1]
            assert site.core.obstacle is None
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        before = model(ids).logits
    surgery.apply(model, "on attention apply prefix(2)", seed=0)
    output = model(ids).logits
    output.square().sum().backward()
    assert (output - before).abs().max() > 1e-4
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in surgery.trainable(model).values()
    )
    surgery.remove(model)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
