"""A method on a part of a fused layer is that method on those rows of its weight."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.planning.layers import packed_layer, read_layer
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
from tests.models import HEADS, HIDDEN, INNER, build, randomise

HEAD = HIDDEN // HEADS


def by_head(parts: str, width: int = HEAD, heads: int = HEADS) -> dict[str, list[int]]:
    """Rows of a projection that keeps the parts of each head together."""
    period = len(parts) * width
    return {
        name: [h * period + i * width + j for h in range(heads) for j in range(width)]
        for i, name in enumerate(parts)
    }


def in_turn(**sizes: int) -> dict[str, list[int]]:
    """Rows of parts that stand one behind the other."""
    found: dict[str, list[int]] = {}
    start = 0
    for name, size in sizes.items():
        found[name] = list(range(start, start + size))
        start += size
    return found


EQUAL = in_turn(q=HIDDEN, k=HIDDEN, v=HIDDEN)
FUSED: dict[str, tuple[str, dict[str, list[int]]]] = {
    "gpt2": ("transformer.h.0.attn.c_attn", EQUAL),
    "nanogpt": ("transformer.h.0.attn.c_attn", EQUAL),
    "gpt_neox": ("gpt_neox.layers.0.attention.query_key_value", by_head("qkv")),
    "bloom": ("transformer.h.0.self_attention.query_key_value", by_head("qkv")),
    "falcon": (
        "transformer.h.0.self_attention.query_key_value",
        in_turn(q=HIDDEN, k=HEAD, v=HEAD),
    ),
    "phi3": ("model.layers.0.self_attn.qkv_proj", in_turn(q=HIDDEN, k=HIDDEN // 2, v=HIDDEN // 2)),
    "phi3 mlp": ("model.layers.0.mlp.gate_up_proj", in_turn(gate=INNER, up=INNER)),
    "encoder_layer": ("self_attn", EQUAL),
}
"""Where a model has a fused layer, and which rows each part has there."""
RULES = ("lora", "rslora", "dora", "vera", "ia3", "ia3_input", "loha", "lokr", "shift")


@dataclass(frozen=True)
class Case:
    """Methods on parts of one fused layer, or on all of it (the part `all`), in order."""

    name: str
    applied: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        return FUSED[self.name][0]

    @property
    def rows(self) -> dict[str, list[int]]:
        return FUSED[self.name][1]

    @property
    def spec(self) -> str:
        lines: list[str] = []
        for number, (part, method) in enumerate(self.applied):
            where = f"`{self.path}`" if part == "all" else f"{part} in `{self.within}`"
            lines.append(f"on {where} {method} as method{number}")
        return "\n".join(lines)

    @property
    def within(self) -> str:
        return self.path if self.name == "encoder_layer" else self.path.rpartition(".")[0]

    def base(self) -> nn.Module:
        return build(self.name.partition(" ")[0]).double()

    def adapted(self) -> nn.Module:
        model = self.base()
        surgery.apply(model, self.spec, seed=0)
        return randomise_added(model)

    def weight_names(self) -> tuple[str, str]:
        packed = "in_proj_" if self.name == "encoder_layer" else ""
        return f"{self.path}.{packed}weight", f"{self.path}.{packed}bias"

    def reference(self, new: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The base, and what its fused weight and bias are with ``new`` parameters put in."""
        model = self.base()
        layer = model.get_submodule(self.path)
        kind = read_layer(layer) or packed_layer(layer, "in_proj_weight")
        assert kind is not None
        tensors = {**dict(model.named_parameters())}
        weight, bias = self.weight_names()
        turned = kind.kind.transposed
        W = tensors[weight].detach()
        W = W.t() if turned else W
        b = tensors[bias].detach() if bias in tensors else torch.zeros(len(W), dtype=W.dtype)
        for number, (part, method) in enumerate(self.applied):
            prefix = f"{self.path}.{'' if part == 'all' else f'{part}.'}method{number}."
            params = {n.removeprefix(prefix): t for n, t in new.items() if n.startswith(prefix)}
            rows = torch.tensor(range(len(W)) if part == "all" else self.rows[part])
            part_W, part_b = compose(method, (W[rows], b[rows]), params)
            W = W.index_copy(0, rows, part_W)
            b = b.index_copy(0, rows, torch.as_tensor(part_b).expand(len(rows)))
        if not kind.bias:
            owner = model.get_submodule(self.path)
            owner.bias = nn.Parameter(torch.zeros_like(b))
        return model, {weight: W.t() if turned else W, bias: b}


@st.composite
def cases(draw: st.DrawFn, names: tuple[str, ...] = tuple(FUSED), whole: bool = True) -> Case:
    name = draw(st.sampled_from(names))
    _, rows = FUSED[name]
    total = sum(map(len, rows.values()))
    parts = [*rows, *(["all"] if whole and name != "encoder_layer" else [])]
    chosen = draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3))
    applied: list[tuple[str, str]] = []
    for part in chosen:
        size = total if part == "all" else len(rows[part])
        rule = draw(st.sampled_from(RULES))
        applied.append((part, draw(methods((size, HIDDEN), rule))))
    return Case(name, tuple(applied))


def run(model: nn.Module, tensors: dict[str, Tensor] | None = None) -> Tensor:
    """The model's logits or hidden states on a fixed input, with some parameters replaced."""
    generator = torch.Generator().manual_seed(5)
    if isinstance(model, nn.TransformerEncoderLayer):
        x: Any = torch.randn(2, 5, HIDDEN, dtype=torch.float64, generator=generator)
    else:
        x = torch.randint(3, 90, (2, 5), generator=generator)
    output = torch.func.functional_call(model, tensors or {}, (x,))
    return output if isinstance(output, Tensor) else getattr(output, "logits", output[0])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_part_is_its_rows(case: Case) -> None:
    model = case.adapted()
    new = {n: p.detach().clone().requires_grad_() for n, p in added(model).items()}
    reference, tensors = case.reference(new)
    expected = run(reference, tensors)
    actual = run(model)
    assert_near(actual, expected, torch.float64)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6)).double()
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in added(model).items():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert_near(parameter.grad, new[name].grad, torch.float64)


@settings(max_examples=25, deadline=None)
@given(cases(whole=False))
def test_merging_writes_the_rows_and_no_other(case: Case) -> None:
    model, base = case.adapted(), case.base()
    before = state_of(model)
    with torch.no_grad():
        adapted = run(model)
        with surgery.merged(model):
            assert_near(run(model), adapted, torch.float64)
        assert_state(model, before)
        assert torch.equal(run(model), adapted)
        report = surgery.merge(model)
        assert not report.stayed
        assert_near(run(model), adapted, torch.float64)
    untouched = sorted(
        set(range(sum(map(len, case.rows.values()))))
        - {row for part, _ in case.applied for row in case.rows[part]}
    )
    merged, old = snapshot(model), snapshot(base)
    for name in old:
        if name not in case.weight_names():
            assert torch.equal(merged[name], old[name]), name
            continue
        turned = merged[name].shape[0] == HIDDEN != old[case.weight_names()[0]].shape[-1]
        now, was = (t.t() if turned and t.dim() > 1 else t for t in (merged[name], old[name]))
        assert torch.equal(now[untouched], was[untouched]), name


@settings(max_examples=15, deadline=None)
@given(cases())
def test_undone_and_loaded(case: Case) -> None:
    model, base = case.adapted(), case.base()
    before = state_of(base)
    with torch.no_grad():
        first = run(base)
        with tempfile.TemporaryDirectory() as folder:
            surgery.save(model, folder)
            again = surgery.load(case.base(), folder)
        assert torch.equal(run(again), run(model))
        assert same_bits(snapshot(again), snapshot(model))
        with surgery.disabled(model):
            assert torch.equal(run(model), first)
        surgery.remove(model)
        assert torch.equal(run(model), first)
        assert_state(model, before)


@pytest.mark.parametrize("name", [*dict.fromkeys(n.partition(" ")[0] for n in FUSED)])
@pytest.mark.parametrize("method", ["lora(2)", "dora(2)", "ia3"])
def test_it_starts_as_the_base(name: str, method: str) -> None:
    model = build(name).double()
    expected = run(model)
    spec = f"on q|v apply {method}"
    assert all(
        edit.derived.identity and edit.derived.merges for edit in surgery.plan(model, spec).edits
    )
    surgery.apply(model, spec, seed=0)
    assert_near(run(model), expected, torch.float64)


class Pixels(nn.Module):
    """Attention over pixels whose projection is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (2, 12)).mT.chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.mT.reshape(x.shape))


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)", "ia3", "ia3_input", "shift"])
def test_slices_of_a_convolution(method: str) -> None:
    base = randomise(Pixels()).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(base)
    spec = f"on q apply {method} as method0\non v apply {method} as method1"
    surgery.apply(model, spec, example_inputs=x, seed=0)
    randomise_added(model)
    rows = by_head("qkv", 4, 2)
    W, b = base.qkv.weight.detach().flatten(1), base.qkv.bias.detach()
    for number, part in enumerate("qv"):
        own = f"qkv.{part}.method{number}."
        params = {n.removeprefix(own): p for n, p in added(model).items() if n.startswith(own)}
        part_W, part_b = compose(f"apply {method}", (W[rows[part]], b[rows[part]]), params)
        index = torch.tensor(rows[part])
        W, b = W.index_copy(0, index, part_W), b.index_copy(0, index, part_b)
    tensors = {"qkv.weight": W[..., None, None], "qkv.bias": b}
    expected = torch.func.functional_call(base, tensors, (x,))
    assert_near(model(x), expected, torch.float64)
    surgery.merge(model)
    assert_near(model(x), expected, torch.float64)


def test_a_traced_graph_has_the_same_slices() -> None:
    eager = build("nanogpt")
    traced = torch.fx.symbolic_trace(eager)
    models = (copy.deepcopy(eager), traced)
    for model in models:
        surgery.apply(model, "on q|v apply lora(2) on k apply ia3", seed=0)
        randomise_added(model)
    ids = torch.randint(3, 90, (2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(models[0](ids), models[1](ids))
    surgery.merge(traced)
    assert_near(traced(ids), models[0](ids), torch.float32)


def test_products_of_low_rank_keep_one_result() -> None:
    """Slices of one layer, and a method on all of it, run as one kernel without a copy."""
    model = build("gpt2")
    surgery.apply(model, "on q|v apply lora(2) on k apply lora(3)", seed=0)
    forward = type(model.transformer.h[0].attn.c_attn).forward
    called = [name for name in forward.__code__.co_names if name.startswith("surgery_graft")]
    assert called == ["surgery_graft_weights_fused_rows_low_rank_rows"]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x)[0]


def test_a_traced_graph_does_not_read_what_a_module_packs() -> None:
    traced = torch.fx.symbolic_trace(Attending())
    before = state_of(traced)
    with pytest.raises(surgery.SurgeryError, match="S417"):
        surgery.apply(traced, "on q apply lora(2)", example_inputs=torch.ones(2, 5, 8))
    assert_state(traced, before)
