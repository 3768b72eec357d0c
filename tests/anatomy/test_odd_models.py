"""Roles where structure is unusual: right, or not named at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from benchmarks.architectures.building import build
from benchmarks.architectures.catalogue import architectures
from benchmarks.architectures.running import example
from surgery.anatomy.read import read

WIDTH = 16

# The first of each role that is told; "-" where there is none.
EXPECTED = {
    "causal/dbrx": (
        "transformer.blocks.0",
        "q=norm_attn_norm.attn.Wqkv[q] o=norm_attn_norm.attn.out_proj mlp=ffn up=ffn.experts.mlp.v1 "
        "down=ffn.experts.mlp.w2 router=ffn.router.layer experts=ffn.experts layer=",
    ),
    "causal/deepseek_v32": (
        "model.layers.0",
        "attention=self_attn q=self_attn.q_b_proj v=self_attn.kv_b_proj[v] mlp=mlp layer=",
    ),
    "causal/deepseek_v4": (
        "model.layers.0",
        "q=self_attn.q_b_proj k=self_attn.kv_proj v=self_attn.kv_proj kv=self_attn.kv_proj layer=",
    ),
    "causal/granitemoehybrid": (
        "model.layers.0",
        "mlp=block_sparse_moe up=shared_mlp.input_linear[up] down=block_sparse_moe.experts.down_proj layer=",
    ),
    "causal/jetmoe": (
        "model.layers.0",
        "attention=self_attention q=self_attention.experts.input_linear.weight "
        "k=self_attention.kv_proj[k] mlp=mlp down=mlp.output_linear.weight layer=",
    ),
    "causal/mamba": ("backbone.layers.0", "attention=- q=- mlp=- up=- layer="),
    "causal/reformer": (
        "reformer.encoder.layers.0",
        "q=attention.self_attention.query v=attention.self_attention.value layer=",
    ),
    "causal/rwkv": (
        "rwkv.blocks.0",
        "attention=- q=- mlp=feed_forward up=feed_forward.key down=feed_forward.value layer=",
    ),
    "causal/xlm": ("transformer", "attention=attentions.0 q=attentions.0.q_lin mlp=ffns.0 layer=-"),
    "causal/xlnet": ("transformer.layer.0", "attention=rel_attn mlp=ff[layer_1..layer_2] layer="),
    "classification/yoso": (
        "yoso.encoder.layer.0",
        "attention=attention[self.query..output.dense] q=attention.self.query "
        "v=attention.self.value o=attention.output.dense layer=",
    ),
    "causal/zamba2": (
        "model.layers",
        "attention=1.shared_transformer.self_attn mlp=1.shared_transformer.feed_forward layer=0",
    ),
    "causal/zaya": (
        "model.layers.0",
        "q=self_attn.qkv_proj.q_proj k=self_attn.qkv_proj.k_proj qk=self_attn.qkv_proj.q_proj mlp=mlp experts=mlp.experts layer=",
    ),
}


@pytest.mark.parametrize("key", EXPECTED)
def test_first_of_each_role(key: str) -> None:
    prefix, text = EXPECTED[key]
    wanted = dict(pair.split("=") for pair in text.split())
    architecture = next(a for a in architectures() if a.key == key)
    model = build(architecture)
    places = read(model, example(model, architecture.task)).places
    found = {role: places[role][0].path if role in places else "-" for role in wanted}
    full = {r: p if p == "-" else f"{prefix}.{p}".rstrip(".") for r, p in wanted.items()}
    assert found == full


def paths(model: nn.Module, *shape: int) -> dict[str, list[str]]:
    """The paths of each role of a model, from one forward on random numbers."""
    torch.manual_seed(0)
    places = read(model, torch.randn(*(shape or (2, 5, WIDTH)))).places
    return {role: [site.path for site in sites] for role, sites in places.items()}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def mask(self, x: Tensor) -> Tensor | None:
        return None

    def keys(self, x: Tensor) -> Tensor:
        return self.k(x)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.weigh(self.q(x), self.keys(x), self.v(x), self.mask(x)))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def bend(self, h: Tensor) -> Tensor:
        return F.gelu(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.bend(self.up(x)))


class Residual(nn.Module):
    """x + f(norm(x)), for each part in turn."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({type(part).__name__.lower(): part for part in parts})
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = x + part(self.norm(x))
        return x


class Indexed(Attention):
    """Sees what other scores choose, which are of an attention's kind themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.index_q, self.index_k = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def mask(self, x: Tensor) -> Tensor:
        scores = (self.index_q(x) @ self.index_k(x).transpose(1, 2)).softmax(-1)
        chosen = scores.topk(3).indices
        return torch.full_like(scores, -1e9).scatter(-1, chosen, 0.0)


def test_what_only_chooses_keys_is_no_attention() -> None:
    found = paths(Residual(Indexed(), FeedForward()))
    assert found["q"] == ["parts.indexed.q"]
    assert found["k"] == ["parts.indexed.k"]
    assert not [path for path in found["linear"] if "index_" in path]
    assert "router" not in found


class Convolved(Attention):
    """Keys to which their own short convolution is added."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def keys(self, x: Tensor) -> Tensor:
        k = self.k(x)
        return k + self.short(k.transpose(1, 2)).transpose(1, 2)


def test_a_short_convolution_of_keys_is_no_residual_branch() -> None:
    assert paths(Residual(Convolved()))["k"] == ["parts.convolved.k"]


class WrittenOut(Attention):
    def weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = q @ k.transpose(1, 2) / 4
        return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True)) @ v


def test_a_softmax_written_out() -> None:
    found = paths(Residual(WrittenOut()))
    assert [found[role] for role in "qkvo"] == [[f"parts.writtenout.{role}"] for role in "qkvo"]


class Rectified(Attention):
    """Scores are rectified in place of a softmax."""

    def weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return (q @ k.transpose(1, 2)).relu().square() @ v / q.shape[1]


def test_a_kernel_in_place_of_a_softmax() -> None:
    model = Residual(Rectified())
    found = paths(model)
    assert [found[role] for role in "qkvo"] == [[f"parts.rectified.{role}"] for role in "qkvo"]
    with pytest.raises(surgery.SurgeryError, match=r"S415.*no softmax"):
        surgery.plan(model, "on attention apply prefix(2)", example_inputs=torch.randn(2, 5, WIDTH))


class Decayed(Attention):
    """Scores that nothing bends: a recurrence over positions, written as a product."""

    def weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        decay = torch.exp(-torch.arange(float(q.shape[1])))
        return (q @ k.transpose(1, 2) * decay) @ v


def test_scores_that_are_not_bent_are_no_attention() -> None:
    assert not {"attention", "q", "k", "v"} & set(paths(Residual(Decayed(), FeedForward())))


class Receptive(FeedForward):
    """A gate multiplies the result, before it joins the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid() * super().forward(x)


def test_a_feed_forward_whose_result_is_gated() -> None:
    model = Residual(Receptive())
    found = paths(model)
    assert found["mlp"] == ["parts.receptive"]
    assert (found["up"], found["down"]) == (["parts.receptive.up"], ["parts.receptive.down"])
    residual = read(model, torch.randn(2, 5, WIDTH)).places["mlp"][0].residual
    assert residual is not None
    assert residual.path == "norm"


class Weighing(nn.Module):
    """The same learnt query for every token: it weighs, and nothing attends."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.after = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack((x, x.tanh()), 2)
        query = self.query.view(1, WIDTH).expand(*x.shape[:2], 1, WIDTH)
        return self.after(F.scaled_dot_product_attention(query, both, both).squeeze(2))


def test_one_query_for_all_tokens_is_no_attention() -> None:
    assert not {"attention", "o"} & set(paths(Residual(Weighing(), FeedForward())))


class Shared(nn.Module):
    """One layer for queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v, self.o = (nn.Linear(WIDTH, n * WIDTH) for n in (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).chunk(2, -1)
        return self.o(F.scaled_dot_product_attention(q, k, self.v(x)))


def test_a_layer_for_queries_and_keys() -> None:
    found = paths(Residual(Shared()))
    assert found["qk"] == ["parts.shared.qk"]
    assert (found["q"], found["k"]) == (["parts.shared.qk[q]"], ["parts.shared.qk[k]"])


class TwoSided(FeedForward):
    """An activation that is told by sides, with a learnt slope on each."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(2))

    def bend(self, h: Tensor) -> Tensor:
        low = torch.expm1(torch.minimum(h, torch.tensor(-1e-6))) * self.slope[0]
        return torch.where(h > 0, h * h * self.slope[1], low)


class LowRank(FeedForward):
    """A low-rank path of its own beside the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 2), nn.Linear(2, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.bend(self.up(x) + self.b(self.a(x))))


class Projected(FeedForward):
    """Its result is projected once more before it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


class Scaled(FeedForward):
    """Normed and scaled before it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x)) * 0.5


@pytest.mark.parametrize("kind", [TwoSided, LowRank, Projected, Scaled])
def test_feed_forwards_with_more_to_them(kind: type[FeedForward]) -> None:
    found = paths(Residual(kind()))
    at = f"parts.{kind.__name__.lower()}"
    assert (found["up"], found["down"]) == ([f"{at}.up"], [f"{at}.down"])
    assert "gate" not in found


class Routed(nn.Module):
    """Experts as modules, chosen by a small network; the second is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = nn.ModuleDict({"up": nn.Linear(WIDTH, 8), "down": nn.Linear(8, 2)})
        self.experts = nn.ModuleList([FeedForward(), FeedForward()])
        nn.init.constant_(self.scorer["down"].bias, 0.0)
        self.scorer["down"].bias.data[0] = 1e6

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scorer["down"](F.gelu(self.scorer["up"](x))).softmax(-1)
        weights, chosen = scores.topk(1)
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            tokens = (chosen == index).squeeze(-1)
            if tokens.any():
                result[tokens] = expert(x[tokens]) * weights[tokens]
        return result


def test_a_router_of_several_layers_is_no_feed_forward() -> None:
    found = paths(Residual(Routed()))
    assert found["mlp"] == ["parts.routed"]
    assert found["router"] == ["parts.routed.scorer.down"]


def test_experts_that_no_token_reached_have_the_roles_of_others() -> None:
    found = paths(Residual(Routed()))
    for role in ("up", "down"):
        assert found[role] == [f"parts.routed.experts.{i}.{role}" for i in range(2)]


class Turns(nn.Module):
    """A stage whose blocks attend and feed forward in turns."""

    def __init__(self) -> None:
        super().__init__()
        parts = [Attention(), FeedForward(), Attention(), FeedForward()]
        self.blocks = nn.ModuleList(Residual(part) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_in_turns_are_layers() -> None:
    found = paths(nn.Sequential(Turns(), Turns()))
    assert found["layer"] == [f"{stage}.blocks.{block}" for stage in range(2) for block in range(4)]


class Lists(nn.Module):
    """Attentions in one list, feed-forwards in another: no module is a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(), Attention()])
        self.others = nn.ModuleList([FeedForward(), FeedForward()])

    def forward(self, x: Tensor) -> Tensor:
        for attention, other in zip(self.attentions, self.others, strict=True):
            x = x + attention(x)
            x = x + other(x)
        return x


class Within(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_lists_beside_each_other_have_no_layers() -> None:
    found = paths(Within(Lists()))
    assert len(found["attention"]) == len(found["mlp"]) == 2
    assert "layer" not in found


class Pooled(nn.Module):
    """Layers, one of them without attention, and a pooling that attends."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Residual(FeedForward()), Residual(Attention(), FeedForward())]
        self.layers = nn.Sequential(*blocks)
        self.pool = Residual(Attention(), FeedForward())

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.layers(x))


def test_layers_are_the_stack_and_all_of_it() -> None:
    assert paths(Pooled())["layer"] == ["layers.0", "layers.1"]


class Linears(nn.Module):
    """What is a linear whatever its class, and what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(WIDTH, WIDTH)
        self.pointwise, self.wide = (
            nn.Conv1d(WIDTH, WIDTH, 1),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
        )
        self.blocks = nn.Linear(WIDTH // 2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(self.pointwise(self.plain(x).transpose(1, 2))).transpose(1, 2)
        blocks = self.blocks.weight.view(2, WIDTH // 2, WIDTH // 2)
        halves = h.reshape(-1, 2, WIDTH // 2).transpose(0, 1)
        return torch.bmm(halves, blocks).transpose(0, 1).reshape(x.shape)


def test_linears_are_told_by_what_they_do() -> None:
    assert paths(Linears())["linear"] == ["plain", "pointwise"]


class Borrowing(nn.Module):
    """The second attention uses the keys and values of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.q, self.o = Attention(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        k, v = self.first.k(h), self.first.v(h)
        x = x + self.first.o(F.scaled_dot_product_attention(self.first.q(h), k, v))
        return x + self.o(F.scaled_dot_product_attention(self.q(self.norm(x)), k, v))


def test_keys_of_an_earlier_layer_are_no_cross_attention() -> None:
    found = paths(Within(Borrowing()))
    assert len(found["attention"]) == 2
    assert "attention.cross" not in found


class Lone(nn.Module):
    """A stack in which each block has one part alone."""

    def __init__(self) -> None:
        super().__init__()
        parts = [Attention(), FeedForward(), FeedForward()]
        self.blocks = nn.ModuleList(Residual(part) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_of_one_part_each_are_layers() -> None:
    assert paths(Within(Lone()))["layer"] == [f"inner.blocks.{i}" for i in range(3)]


class Latent(Attention):
    """Queries of a latent that is normed, scaled, and put beside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.normed, self.q = nn.Linear(WIDTH, 4), nn.LayerNorm(4), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        latent = self.a(x)
        q = self.q(torch.cat((self.normed(latent) * 2.5, latent), -1))
        return self.o(F.scaled_dot_product_attention(q, self.k(x), self.v(x)))


def test_queries_of_a_latent() -> None:
    found = paths(Residual(Latent()))
    assert (found["q"], found["attention"]) == (["parts.latent.q"], ["parts.latent"])
    assert "attention.cross" not in found
