"""Which module plays which role, on models of every kind that is common."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from surgery.anatomy.read import Anatomy, read
from tests.models import build

SIMPLE = ("q", "k", "v", "qkv", "o", "up", "gate", "gate_up", "down", "attention", "mlp")

# For each model: a prefix, then the roles found first below it, relative to it.
EXPECTED: dict[str, tuple[str, str]] = {
    "llama": (
        "model.layers.0",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.o_proj "
        "up=mlp.up_proj gate=mlp.gate_proj down=mlp.down_proj attention=self_attn mlp=mlp",
    ),
    "phi": (
        "model.layers.0",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.dense "
        "up=mlp.fc1 down=mlp.fc2 attention=self_attn mlp=mlp",
    ),
    "phi3": (
        "model.layers.0",
        "qkv=self_attn.qkv_proj q=self_attn.qkv_proj[q] k=self_attn.qkv_proj[k] v=self_attn.qkv_proj[v] o=self_attn.o_proj gate_up=mlp.gate_up_proj gate=mlp.gate_up_proj[gate] up=mlp.gate_up_proj[up] "
        "down=mlp.down_proj attention=self_attn mlp=mlp",
    ),
    "gpt2": (
        "transformer.h.0",
        "qkv=attn.c_attn q=attn.c_attn[q] k=attn.c_attn[k] v=attn.c_attn[v] o=attn.c_proj up=mlp.c_fc down=mlp.c_proj attention=attn mlp=mlp",
    ),
    "gptj": (
        "transformer.h.0",
        "q=attn.q_proj k=attn.k_proj v=attn.v_proj o=attn.out_proj up=mlp.fc_in "
        "down=mlp.fc_out attention=attn mlp=mlp",
    ),
    "gpt_neox": (
        "gpt_neox.layers.0",
        "qkv=attention.query_key_value q=attention.query_key_value[q] k=attention.query_key_value[k] v=attention.query_key_value[v] o=attention.dense up=mlp.dense_h_to_4h "
        "down=mlp.dense_4h_to_h attention=attention mlp=mlp",
    ),
    "falcon": (
        "transformer.h.0",
        "qkv=self_attention.query_key_value q=self_attention.query_key_value[q] k=self_attention.query_key_value[k] v=self_attention.query_key_value[v] o=self_attention.dense up=mlp.dense_h_to_4h "
        "down=mlp.dense_4h_to_h attention=self_attention mlp=mlp",
    ),
    "bloom": (
        "transformer.h.0",
        "qkv=self_attention.query_key_value q=self_attention.query_key_value[q] k=self_attention.query_key_value[k] v=self_attention.query_key_value[v] o=self_attention.dense up=mlp.dense_h_to_4h "
        "down=mlp.dense_4h_to_h attention=self_attention[query_key_value..dense] "
        "mlp=mlp[dense_h_to_4h..dense_4h_to_h]",
    ),
    "mpt": (
        "transformer.blocks.0",
        "qkv=attn.Wqkv q=attn.Wqkv[q] k=attn.Wqkv[k] v=attn.Wqkv[v] o=attn.out_proj up=ffn.up_proj down=ffn.down_proj attention=attn "
        "mlp=ffn[up_proj..down_proj]",
    ),
    "opt": (
        "model.decoder.layers.0",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.out_proj "
        "up=fc1 down=fc2 attention=self_attn mlp=[fc1..fc2]",
    ),
    "bert": (
        "encoder.layer.0",
        "q=attention.self.query k=attention.self.key v=attention.self.value "
        "o=attention.output.dense up=intermediate.dense down=output.dense "
        "attention=attention[self.query..output.dense] mlp=[intermediate.dense..output.dense]",
    ),
    "deberta": (
        "encoder.layer.0",
        "q=attention.self.query_proj k=attention.self.key_proj v=attention.self.value_proj "
        "o=attention.output.dense up=intermediate.dense down=output.dense "
        "attention=attention[self.query_proj..output.dense] "
        "mlp=[intermediate.dense..output.dense]",
    ),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers.0",
        "q=attention.query k=attention.key v=attention.value o=attention.dense up=ffn "
        "down=ffn_output attention=attention[query..dense] mlp=[ffn..ffn_output]",
    ),
    "distilbert": (
        "transformer.layer.0",
        "q=attention.q_lin k=attention.k_lin v=attention.v_lin o=attention.out_lin "
        "up=ffn.lin1 down=ffn.lin2 attention=attention mlp=ffn",
    ),
    "t5": (
        "encoder.block.0.layer",
        "q=0.SelfAttention.q k=0.SelfAttention.k v=0.SelfAttention.v o=0.SelfAttention.o "
        "up=1.DenseReluDense.wi down=1.DenseReluDense.wo attention=0.SelfAttention "
        "mlp=1.DenseReluDense",
    ),
    "bart": (
        "model.encoder.layers.0",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.out_proj "
        "up=fc1 down=fc2 attention=self_attn mlp=[fc1..fc2]",
    ),
    "vit": (
        "vit.layers.0",
        "q=attention.q_proj k=attention.k_proj v=attention.v_proj o=attention.o_proj "
        "up=mlp.fc1 down=mlp.fc2 attention=attention mlp=mlp",
    ),
    "clip": (
        "text_model.encoder.layers.0",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.out_proj "
        "up=mlp.fc1 down=mlp.fc2 attention=self_attn mlp=mlp",
    ),
    "encoder_layer": (
        "",
        "q=self_attn.in_proj_weight[q] k=self_attn.in_proj_weight[k] v=self_attn.in_proj_weight[v] "
        "o=self_attn.out_proj up=linear1 down=linear2 attention=self_attn mlp=[linear1..linear2]",
    ),
    "nanogpt": (
        "transformer.h.0",
        "qkv=attn.c_attn q=attn.c_attn[q] k=attn.c_attn[k] v=attn.c_attn[v] o=attn.c_proj up=mlp.c_fc down=mlp.c_proj attention=attn mlp=mlp",
    ),
    "mixtral": (
        "model.layers.0",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj o=self_attn.o_proj "
        "gate_up=mlp.experts.gate_up_proj down=mlp.experts.down_proj "
        "attention=self_attn mlp=mlp router=mlp.gate experts=mlp.experts",
    ),
    "mixer": (
        "blocks.0",
        "up=mlp_tokens.0 down=mlp_tokens.2 mlp=mlp_tokens",
    ),
    "resnet": ("", ""),
}
for _like, _other in (
    ("llama", "qwen2 qwen3 mistral gemma gemma2 cohere"),
    ("bert", "electra"),
    ("bart", "whisper"),
):
    EXPECTED.update(dict.fromkeys(_other.split(), EXPECTED[_like]))
for _name, _prefix in (("roberta", "roberta."), ("bert_classifier", "bert.")):
    EXPECTED[_name] = (_prefix + EXPECTED["bert"][0], EXPECTED["bert"][1])


@pytest.mark.parametrize("name", EXPECTED)
def test_first_of_each_role(name: str) -> None:
    prefix, text = EXPECTED[name]
    joined = [pair.split("=") for pair in text.split()]
    wanted = {
        role: prefix + path if path.startswith("[") else f"{prefix}.{path}".lstrip(".")
        for role, path in joined
    }
    places = read(build(name)).places
    found = {
        role: places[role][0].path for role in (*SIMPLE, "router", "experts") if role in places
    }
    assert found == wanted


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("llama", {"layer": 2, "q": 2, "mlp": 2, "norm": 5, "head": 1, "embedding": 1}),
        ("qwen3", {"norm": 9}),
        ("t5", {"attention": 6, "attention.self": 4, "attention.cross": 2, "mlp": 4, "layer": 4}),
        ("whisper", {"attention.cross": 2, "attention.self": 4, "layer": 4}),
        ("albert", {"layer": 1, "attention": 1, "mlp": 1}),
        ("resnet", {"layer": 4, "norm": 10, "head": 1}),
        ("mixer", {"layer": 2, "mlp": 4, "head": 1}),
        ("bert", {"embedding": 1, "norm": 5}),
    ],
)
def test_how_many(name: str, counts: dict[str, int]) -> None:
    places = read(build(name)).places
    assert {role: len(places.get(role, ())) for role in counts} == counts


def test_what_is_not_there_is_not_named() -> None:
    assert set(read(build("resnet")).places) == {"layer", "linear", "norm", "head"}
    assert "head" not in read(build("bert")).places
    assert "attention.cross" not in read(build("bert")).places


class Mix(nn.Module):
    """Gated and bent, but across positions: a state space of sorts, no feed-forward."""

    def __init__(self, mixing: str) -> None:
        super().__init__()
        self.mixing = mixing
        self.norm = nn.LayerNorm(16)
        self.inner = nn.Linear(16, 32)
        self.conv = nn.Conv1d(32, 32, 3, groups=32, padding=1)
        self.outer = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(self.norm(x))
        if self.mixing == "conv":
            h = self.conv(h.transpose(1, 2)).transpose(1, 2)
        elif self.mixing == "cumsum":
            h = h.cumsum(1)
        elif self.mixing == "matmul":
            h = h @ h.transpose(1, 2) @ h
        return x + self.outer(nn.functional.silu(h))


@pytest.mark.parametrize("mixing", ["conv", "cumsum", "matmul"])
def test_mixing_positions_is_no_feed_forward(mixing: str) -> None:
    example = torch.ones(2, 5, 16)
    assert read(Mix("nothing"), example).places["mlp"][0].path == "[inner..outer]"
    assert "mlp" not in read(Mix(mixing), example).places


class Shifted(nn.Module):
    """Gate and value of different inputs, as a channel mix with a token shift has them."""

    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.shift = shift
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x.roll(1, 1) * 0.5 + x * 0.5 if self.shift else x
        return x + self.down(self.gate(x).relu() * self.up(before))


def test_a_feed_forward_has_one_input() -> None:
    example = torch.ones(2, 5, 16)
    places = read(Shifted(False), example).places
    assert (places["gate"][0].path, places["up"][0].path) == ("gate", "up")
    assert not {"mlp", "gate", "up"} & set(read(Shifted(True), example).places)


class Reduced(nn.Module):
    """Self-attention whose keys and values are of fewer positions, after Segformer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 16)
        self.reduce = nn.Conv1d(16, 16, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fewer = nn.functional.gelu(self.reduce(x.transpose(1, 2))).transpose(1, 2)
        k, v = self.kv(fewer).chunk(2, -1)
        y = nn.functional.scaled_dot_product_attention(self.q(x), k, v)
        return x + self.o(y)


def test_fewer_keys_of_the_same_stream_are_no_cross_attention() -> None:
    places = read(nn.Sequential(Reduced(), Reduced()), torch.randn(2, 6, 16)).places
    assert [site.path for site in places["kv"]] == ["0.kv", "1.kv"]
    assert len(places["attention.self"]) == 2
    assert "attention.cross" not in places


def test_layers_of_two_kinds_are_one_stack() -> None:
    block, plain = build("encoder_layer"), build("mixer").blocks[0].mlp_channels

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inner(x)

    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Plain(), block])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    anatomy = read(nn.Sequential(Hybrid()), torch.randn(2, 5, 32))
    found = [(site.path, site.index) for site in anatomy.places["layer"]]
    assert found == [("0.layers.0", 0), ("0.layers.1", 1)]


def test_a_written_out_activation_is_no_residual() -> None:
    # 0.5 x (1 + tanh(… (x + 0.044715 x³))): x is added to what is computed from it.
    assert len(read(build("gpt2")).reading.sums) == 4


class Written(nn.Module):
    """Attention written out, latents before the keys, a norm and a gate before the output."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.latent = nn.Linear(16, 16), nn.Linear(16, 4)
        self.latent_norm, self.heads = nn.LayerNorm(4), nn.Linear(4, 32)
        self.gate, self.after, self.output = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, v = self.heads(self.latent_norm(self.latent(x))).chunk(2, -1)
        scores = torch.einsum("bqd,bkd->bqk", self.query(x), k) / 4
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
        y = self.after(scores.softmax(-1) @ v)
        return x + self.output(y * self.gate(x).sigmoid())


def test_attention_written_out() -> None:
    places = read(Written(), torch.ones(2, 5, 16)).places
    found = {role: [site.path for site in sites] for role, sites in places.items()}
    assert (found["q"], found["kv"], found["o"]) == (["query"], ["heads"], ["output"])
    assert (found["k"], found["v"]) == (["heads[k]"], ["heads[v]"])
    assert not {"mlp", "attention.cross"} & set(found)
    assert found["attention.self"] == ["[query..output]"]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(16, 4)
        self.several = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.choose(x).softmax(-1).topk(2)
        parts = [
            expert(x) * (weights * (chosen == i)).sum(-1, keepdim=True)
            for i, expert in enumerate(self.several)
        ]
        return torch.stack(parts).sum(0)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.moe = nn.LayerNorm(16), Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.moe(self.norm(x))


def test_mixture_of_modules() -> None:
    anatomy = read(Mixture(), torch.randn(2, 5, 16))
    found = {role: [site.path for site in sites] for role, sites in anatomy.places.items()}
    assert found["router"] == ["moe.choose"]
    assert found["experts"] == ["moe.several"]
    assert found["expert"] == [f"moe.several.{i}" for i in range(4)]
    assert found["mlp"] == ["moe"]
    residual = anatomy.places["mlp"][0].residual
    assert residual is not None
    assert residual.path == "norm"


def _paths(anatomy: Anatomy) -> dict[str, list[str]]:
    return {role: [site.path for site in sites] for role, sites in anatomy.places.items()}


def test_a_traced_model_has_the_same_roles() -> None:
    model = build("nanogpt")
    ids = torch.arange(16).reshape(2, 8)
    traced = fx.symbolic_trace(model)
    assert _paths(read(traced, ids)) == _paths(read(model, ids))


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5"])
def test_other_attention_kernels_change_nothing(name: str) -> None:
    model = build(name)
    fast = _paths(read(model))
    model.set_attn_implementation("eager")
    assert _paths(read(model)) == fast


def test_on_the_meta_device() -> None:
    import transformers

    config = transformers.LlamaConfig(num_hidden_layers=3)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    places = read(model).places
    assert [site.path for site in places["down"]] == [
        f"model.layers.{i}.mlp.down_proj" for i in range(3)
    ]
