"""A method on the weights of all experts is that method on the weight of each."""

from __future__ import annotations

import copy
import io
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from tests.laws.reference import compose
from tests.laws.strategies import (
    added,
    assert_near,
    assert_state,
    methods,
    randomise_added,
    same_bits,
    snapshot,
    state_of,
)
from tests.models import HEADS, HIDDEN, VOCABULARY, randomise

EXPERTS, INNER = 4, 24
IDS = torch.randint(3, 90, (2, 6), generator=torch.Generator().manual_seed(0))
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    **_TOKENS,
}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": EXPERTS},
    "Qwen2Moe": {"num_experts": EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {"num_experts": EXPERTS, "head_dim": 8},
    "GptOss": {"num_local_experts": EXPERTS, "head_dim": 8, "rope_parameters": None},
    "DeepseekV3": {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        **_LATENT,
    },
}
TRANSPOSED = ("GptOss",)
WEIGHTS = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
RULES = ("lora", "rslora", "dora", "vera", "ia3", "ia3_input", "loha", "lokr")


def build(
    name: str, implementation: str = "eager", dtype: torch.dtype = torch.float64
) -> nn.Module:
    import transformers

    settings = {k: v for k, v in {**_COMMON, **CONFIGS[name]}.items() if v is not None}
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.set_experts_implementation(implementation)
    return randomise(model).to(dtype).eval()


def dbrx() -> nn.Module:
    import transformers

    config = transformers.DbrxConfig(
        d_model=HIDDEN,
        n_heads=HEADS,
        n_layers=1,
        max_seq_len=64,
        vocab_size=VOCABULARY,
        ffn_config={
            "ffn_hidden_size": INNER,
            "moe_num_experts": EXPERTS,
            "moe_top_k": 2,
            "hidden_size": HIDDEN,
        },
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    )
    return randomise(transformers.DbrxForCausalLM(config)).double().eval()


def run(model: nn.Module, tensors: dict[str, Tensor] | None = None) -> Tensor:
    return torch.func.functional_call(model, tensors or {}, (IDS,)).logits


def effective(
    model: nn.Module, applied: list[tuple[str, str]], new: dict[str, Tensor], transposed: bool
) -> dict[str, Tensor]:
    """The weights of the base with each method worked into the weight of each expert."""
    tensors = {n: p.detach() for n, p in model.named_parameters() if n.endswith(tuple(WEIGHTS))}
    owner = next(iter(tensors)).rpartition(".")[0]
    for number, (weight, method) in enumerate(applied):
        prefix = f"{owner}.method{number}.{weight}."
        params = {n.removeprefix(prefix): t for n, t in new.items() if n.startswith(prefix)}
        name = f"{owner}.{weight}"
        each: list[Tensor] = []
        for expert, W in enumerate(tensors[name]):
            own = {n: t[expert] for n, t in params.items()}
            W = W.t() if transposed else W
            changed, _ = compose(method, (W, torch.zeros(len(W), dtype=W.dtype)), own)
            each.append(changed.t() if transposed else changed)
        tensors[name] = torch.stack(each)
    return tensors


@st.composite
def application(draw: st.DrawFn, rules: tuple[str, ...] = RULES) -> list[tuple[str, str]]:
    chosen = draw(st.lists(st.sampled_from(list(WEIGHTS)), min_size=1, max_size=3))
    return [(w, draw(methods(WEIGHTS[w], draw(st.sampled_from(rules))))) for w in chosen]


def spec_of(applied: list[tuple[str, str]]) -> str:
    return "\n".join(
        f"on `experts.{weight}` {method} as method{number}"
        for number, (weight, method) in enumerate(applied)
    )


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(CONFIGS)), st.sampled_from(("eager", "batched_mm")), application())
def test_it_is_the_method_on_each(
    name: str, implementation: str, applied: list[tuple[str, str]]
) -> None:
    model = build(name, implementation)
    surgery.apply(model, spec_of(applied), seed=0)
    randomise_added(model)
    new = {n: p.detach().clone().requires_grad_() for n, p in added(model).items()}
    base = build(name, implementation)
    expected = run(base, effective(base, applied, new, name in TRANSPOSED))
    actual = run(model)
    assert_near(actual, expected, torch.float64)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6)).double()
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    for parameter_name, parameter in added(model).items():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert_near(parameter.grad, new[parameter_name].grad, torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", ["lora(2, alpha = 3)", "lora(5)", "dora(2)"])
def test_grouped_products(name: str, method: str) -> None:
    """Grouped kernels know no float64."""
    model = build(name, "grouped_mm", torch.float32)
    surgery.apply(model, f"on experts apply {method}", seed=0)
    randomise_added(model)
    adapted = run(model)
    adapted.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in surgery.trainable(model).values())
    other = build(name, "eager", torch.float32)
    surgery.apply(other, f"on experts apply {method}", seed=0)
    randomise_added(other)
    assert_near(adapted, run(other), torch.float32)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(CONFIGS)), application())
def test_merged_undone_and_loaded(name: str, applied: list[tuple[str, str]]) -> None:
    model, base = build(name), build(name)
    before = state_of(base)
    surgery.apply(model, spec_of(applied), seed=0)
    randomise_added(model)
    new = added(model)
    with torch.no_grad():
        adapted, first = run(model), run(base)
        with tempfile.TemporaryDirectory() as folder:
            surgery.save(model, folder)
            again = surgery.load(build(name), folder)
        assert torch.equal(run(again), adapted)
        assert same_bits(snapshot(again), snapshot(model))
        during = state_of(model)
        with surgery.merged(model):
            assert_near(run(model), adapted, torch.float64)
            held = {n: p.clone() for n, p in model.named_parameters() if n.endswith(tuple(WEIGHTS))}
        assert_state(model, during)
        wanted = effective(base, applied, new, name in TRANSPOSED)
        for weight, tensor in wanted.items():
            assert_near(held[weight], tensor, torch.float64)
        with surgery.disabled(model):
            assert torch.equal(run(model), first)
        surgery.remove(model)
        assert_state(model, before)
        assert torch.equal(run(model), first)


def test_matrices_that_are_stacked_in_two_dims() -> None:
    model = dbrx()
    base = run(model).detach()
    surgery.apply(
        model, "on `experts.mlp.{w1,v1,w2}` apply lora(2) on `mlp.w1` apply dora(2)", seed=0
    )
    assert_near(run(model), base, torch.float64)
    randomise_added(model)
    names = dict(added(model))
    assert names["transformer.blocks.0.ffn.experts.mlp.lora.w2.A"].shape == (EXPERTS, 2, INNER)
    adapted = run(model)
    with surgery.merged(model):
        assert_near(run(model), adapted, torch.float64)
    assert not torch.equal(adapted, base)


def test_what_is_planned_for_the_role() -> None:
    model = build("Mixtral")
    plan = surgery.plan(model, "on experts apply lora(r = 2)")
    assert {t.name: t.shape for t in plan.tensors} == {
        "model.layers.0.mlp.experts.lora.gate_up_proj.A": (EXPERTS, 2, HIDDEN),
        "model.layers.0.mlp.experts.lora.gate_up_proj.B": (EXPERTS, 2 * INNER, 2),
        "model.layers.0.mlp.experts.lora.down_proj.A": (EXPERTS, 2, INNER),
        "model.layers.0.mlp.experts.lora.down_proj.B": (EXPERTS, HIDDEN, 2),
    }
    surgery.apply(model, "on experts apply lora(r = 2)", seed=0)
    first = model.model.layers[0].mlp.experts.lora.gate_up_proj.A
    assert not torch.equal(first[0], first[1])


def test_copies_and_pickles() -> None:
    model = build("GptOss")
    surgery.apply(model, "on experts apply lora(2) on `experts.down_proj` apply vera(3)", seed=0)
    randomise_added(model)
    expected = run(model)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(run(torch.load(file, weights_only=False)), expected)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("apply shift", "only they can be changed"),
        ("sequential adapter(2)", "a method must merge"),
        ("apply lora(2, dropout = 0.1)", "dropout would never act"),
        ("gated lora(2)", "whose they are cannot be told"),
    ],
)
def test_what_has_no_meaning_there(method: str, message: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=message):
        surgery.plan(build("Mixtral"), f"on `experts.down_proj` {method}")


class Multiplied(nn.Module):
    """Reads the weights of its experts in ways that no rule foresees."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.empty(3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        share = self.choose(x).softmax(-1).topk(3).values
        every = x.unsqueeze(-3) @ self.weight.mT
        norm = self.weight.square().sum() + torch.stack([w.norm() for w in self.weight]).sum()
        first = x @ self.weight.transpose(1, 2)[0]
        last = torch.einsum("bti,oi->bto", x, self.weight[-1])
        return first + last / norm + (every * share.mean()).sum(-3)


def test_other_uses_see_the_changed_weights() -> None:
    base = randomise(Multiplied()).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(base)
    surgery.apply(model, "on `.weight` apply lora(2, alpha = 3)", example_inputs=x, seed=0)
    randomise_added(model)
    A, B = model.lora.weight.A, model.lora.weight.B
    expected = torch.func.functional_call(base, {"weight": base.weight + 1.5 * B @ A}, (x,))
    assert_near(model(x), expected, torch.float64)


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)"])
def test_a_kernel_that_reads_addresses_is_told(method: str) -> None:
    model = build("Mixtral")
    surgery.apply(model, f"on experts apply {method}", seed=0)
    experts = model.model.layers[0].mlp.experts
    own = experts._parameters["down_proj"]
    assert experts.down_proj.data_ptr() == own.data_ptr()
    experts.to("meta")
    with pytest.raises(RuntimeError, match="set_experts_implementation"):
        experts.down_proj.data_ptr()
