"""Which outputs of a fused layer are whose, told from where they go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import surgery
from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.select import select
from tests.models import build

X = torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16)


def rows(anatomy: Anatomy, role: str) -> list[int]:
    (site,) = anatomy.places[role]
    assert site.rows is not None
    return list(site.rows)


class Fused(nn.Module):
    """Attention of 4 heads with one projection, taken apart by ``split`` into [b, h, t, 4] each."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], total: int = 48):
        super().__init__()
        self.split = split
        self.inner, self.outer = nn.Linear(16, total), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.inner(x))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.outer(y.transpose(1, 2).flatten(2))


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (4, 4)).transpose(1, 2)


def parts_first(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = y.view(2, 5, 3, 4, 4).permute(2, 0, 3, 1, 4)
    return q, k, v


def heads_first(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = y.view(2, 5, 4, 12).transpose(1, 2).chunk(3, -1)
    return q, k, v


def rotated(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (heads(t) for t in y.split(16, -1))
    turned = torch.cat((-q[..., 2:], q[..., :2]), -1)
    angles = torch.arange(5.0).unsqueeze(-1) * torch.ones(4)
    return q * angles.cos() + turned * angles.sin(), functional.rms_norm(k, (4,)), v


def last_of_three(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    v, q, k = (heads(y[..., i::3]) for i in range(3))
    return q, k, v


def written_in_place(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (heads(t) for t in y.split(16, -1))
    q = q.clone()
    q[..., :2] = q[..., :2].flip(-1)
    return q.mul_(2), k, v


def one_key_for_all(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = y.split((16, 4, 4), -1)
    return heads(q), k.unsqueeze(1).expand(2, 4, 5, 4), v.unsqueeze(1).expand(2, 4, 5, 4)


@pytest.mark.parametrize(
    ("split", "q", "k"),
    [
        (parts_first, range(16), range(16, 32)),
        (rotated, range(16), range(16, 32)),
        (written_in_place, range(16), range(16, 32)),
        (
            heads_first,
            [12 * h + i for h in range(4) for i in range(4)],
            [12 * h + 4 + i for h in range(4) for i in range(4)],
        ),
        (last_of_three, range(1, 48, 3), range(2, 48, 3)),
    ],
)
def test_however_it_is_taken_apart(
    split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], q: range, k: range
) -> None:
    anatomy = read(Fused(split), X)
    assert rows(anatomy, "q") == list(q)
    assert rows(anatomy, "k") == list(k)
    assert rows(anatomy, "v") == sorted(set(range(48)) - {*q, *k})


def test_one_key_for_all_heads() -> None:
    anatomy = read(Fused(one_key_for_all, 24), X)
    assert [len(rows(anatomy, role)) for role in "qkv"] == [16, 4, 4]


def sharing(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return heads(y[..., :16]), heads(y[..., 8:24]), heads(y[..., 32:])


def test_what_is_not_apart_has_no_slices() -> None:
    model = Fused(sharing)
    assert not {"q", "k", "v"} & set(read(model, X).places)
    with pytest.raises(surgery.SurgeryError, match="q is not a separate layer") as caught:
        surgery.plan(model, "on q apply lora(2)", example_inputs=X)
    assert "part of the fused layer `inner`, which has the role qkv" in str(caught.value)


class OneForBoth(nn.Module):
    """Keys and values are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        kv = heads(self.kv(x).tanh())
        y = functional.scaled_dot_product_attention(heads(self.q(x)), kv, kv)
        return x + self.o(y.transpose(1, 2).flatten(2))


def test_a_layer_that_makes_two_as_one_is_both() -> None:
    places = read(OneForBoth(), X).places
    assert {role: [s.path for s in places[role]] for role in ("q", "k", "v", "kv")} == {
        "q": ["q"],
        "k": ["kv"],
        "v": ["kv"],
        "kv": ["kv"],
    }
    assert len(surgery.plan(OneForBoth(), "on k|v apply lora(2)", example_inputs=X).edits) == 1


class Mixed(nn.Module):
    """Queries and keys, of which there are fewer, are mixed after they were projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, width)
        self.v, self.o = nn.Linear(16, width), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x).unflatten(-1, (-1, 4)), self.other(x).unflatten(-1, (-1, 4))
        times = one.shape[2] // other.shape[2]
        q = one + other.repeat_interleave(times, 2)
        k = other + one.unflatten(2, (-1, times)).mean(3)
        v = self.v(x).unflatten(-1, (-1, 4))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=times > 1)
        return x + self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("width", "q", "k"), [(8, ["one"], ["other"]), (16, ["one", "other"], ["one", "other"])]
)
def test_of_mixed_operands_the_size_decides_or_each_layer_is_both(
    width: int, q: list[str], k: list[str]
) -> None:
    places = read(Mixed(width), X).places
    assert ([s.path for s in places["q"]], [s.path for s in places["k"]]) == (q, k)


class Gated(nn.Module):
    def __init__(self, product: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product
        self.inner, self.outer = nn.Linear(16, 24), nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.product(self.inner(x)))


def first_is_bent(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return functional.silu(gate) * up


def every_second_is_bent(h: Tensor) -> Tensor:
    gate, up = h[..., 1::2], h[..., ::2]
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.7))


@pytest.mark.parametrize(
    ("product", "gate"),
    [
        (first_is_bent, range(12)),
        (every_second_is_bent, range(1, 24, 2)),
        (functional.glu, range(12, 24)),
    ],
)
def test_the_gate_is_the_factor_that_is_bent(
    product: Callable[[Tensor], Tensor], gate: range
) -> None:
    anatomy = read(Gated(product), X)
    assert rows(anatomy, "gate") == list(gate)
    assert rows(anatomy, "up") == sorted(set(range(24)) - set(gate))


def test_where_a_slice_lies_and_what_is_known_of_it() -> None:
    model = build("gpt2")

    def chosen(text: str) -> list[str]:
        return list(select(model, text, lambda: read(model)).paths)

    q = "transformer.h.1.attn.c_attn[q]"
    assert chosen("q in layer[1]") == [q]
    assert chosen("q in attention where index == 1") == [q]
    assert chosen("q in qkv where index == 1") == [q]
    assert chosen("q|v where outputs == 32 and inputs == 32 and index == 1 except v") == [q]
    assert chosen('q where parameters == 1056 and class == "Conv1D" except layer[0]') == [q]
    assert chosen('q where path == "**.c_attn?q?" and depth > 3 and index == 1') == [q]
    assert chosen("v|q in layer[0]") == [
        "transformer.h.0.attn.c_attn[v]",
        "transformer.h.0.attn.c_attn[q]",
    ]


def test_a_slice_has_no_parameters_to_train() -> None:
    with pytest.raises(
        surgery.SurgeryError, match=r"a slice of the fused layer `transformer\.h\.0\.attn\.c_attn`"
    ):
        surgery.plan(build("gpt2"), "train q")


@pytest.mark.parametrize(
    "spec",
    [
        "on q apply lora(2) on q apply lora(2)",
        "on q apply lora(2) on qkv apply ia3 as q",
        "on qkv apply ia3 as q on q apply lora(2)",
    ],
)
def test_a_name_that_is_taken(spec: str) -> None:
    with pytest.raises(surgery.SurgeryError, match="S407"):
        surgery.plan(build("gpt2"), spec)


def test_what_is_shown() -> None:
    model = build("gpt_neox")
    below = "gpt_neox.layers.0.attention.query_key_value"
    spec = "on q|v apply lora(2, alpha = 4)"
    shown = str(surgery.diff(model, spec))
    assert f"~ {below}[q]   linear 32 → 32" in shown
    assert "y += 2 * linear(linear(x, A), B)" in shown
    explained = str(surgery.explain(model, f"{below}[v]", spec))
    assert "yes: `v` matches it" in explained
    assert "merged weight = put(W, W[v] + ((B @ A) * 2), of = v)" in explained
    assert f"{below.replace('0', '{0,1}')}[v]" in str(surgery.inspect(model, "v"))
    surgery.apply(model, spec)
    names = [n for n, p in model.named_parameters() if p.requires_grad and ".layers.0." in n]
    assert names == [f"{below}.{role}.lora.{m}" for role in "qv" for m in "AB"]
