"""The cores of attentions written in every way, with new keys in front, against one by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.read import read
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.masks import reveal
from surgery.graft.attention.reroute import rerouted
from surgery.language.diagnostics import SurgeryError
from tests.graft.attending import NEW, Prefix, by_functions, by_hand, give, in_front, wire
from tests.models import randomise

BATCH, LENGTH, HEADS, FEATURES = 2, 5, 4, 6
WIDTH = HEADS * FEATURES
CORE = AttentionCore("", 0, "fused", HEADS, HEADS, FEATURES, FEATURES)


def added(mask: Tensor | None) -> Tensor | None:
    """A mask as numbers to add."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, float("-inf"))


@st.composite
def masks(draw: st.DrawFn, queries: int, keys: int) -> tuple[Tensor | None, bool]:
    """A mask of any kind, or that the function is to be causal."""
    kind = draw(st.sampled_from(["none", "causal", "bool", "float"]))
    if kind in ("none", "causal"):
        return None, kind == "causal"
    shape = [draw(st.sampled_from([1, full])) for full in (BATCH, HEADS, queries, keys)]
    shape = shape[draw(st.integers(0, 3)) :]
    if kind == "bool":
        return torch.rand(shape) < 0.7, False
    return torch.randn(shape), False


@settings(max_examples=120, deadline=None)
@given(
    st.data(),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(["plain", "grouped", "repeated", "one"]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([None, 0.3]),
    st.booleans(),
)
def test_fused_under_any_mask(
    data: st.DataObject,
    queries: int,
    keys: int,
    layout: str,
    dtype: torch.dtype,
    scale: float | None,
    keywords: bool,
) -> None:
    mask, causal = data.draw(masks(queries, keys))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    heads = {"plain": HEADS, "grouped": 2, "repeated": 2, "one": 1}[layout]
    prefix = Prefix(replace(CORE, heads=heads))
    q = torch.randn(BATCH, HEADS, queries, FEATURES, dtype=dtype)
    k = torch.randn(BATCH, heads, keys, FEATURES, dtype=dtype)
    v = torch.randn(BATCH, heads, keys, FEATURES, dtype=dtype)
    if layout == "repeated":
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    settings = {"is_causal": causal, "scale": scale, "enable_gqa": layout in ("grouped", "one")}
    with rerouted([(prefix.core, prefix.change())]):
        if keywords:
            found = functional.scaled_dot_product_attention(
                query=q, key=k, value=v, attn_mask=mask, **settings
            )
        else:
            found = functional.scaled_dot_product_attention(q, k, v, mask, 0.0, **settings)
    if causal:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    exact = (t.double() for t in (q, k, v, prefix.k, prefix.v))
    expected = by_hand(*exact, added(mask), scale)
    rough = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=rough, atol=rough)


def test_reveal_leaves_masks_of_no_new_keys() -> None:
    q, k = torch.randn(2, 4, 3, 6), torch.randn(2, 4, 5, 6)
    mask = torch.randn(3, 5)
    assert reveal(mask, False, 0, q, k) is mask
    assert reveal(None, False, 2, q, k) is None


class Projected(nn.Module):
    """Linears around a core that is written in one of the ways below."""

    def __init__(self, core: Callable[..., Tensor], heads: int = HEADS):
        super().__init__()
        self.core = core
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, heads * FEATURES) for _ in range(2))
        self.sinks = nn.Parameter(torch.randn(HEADS))
        self.temperature = nn.Parameter(torch.randn(HEADS, 1, 1))

    def operands(self, x: Tensor) -> list[Tensor]:
        parts = (self.q(x), self.k(x), self.v(x))
        return [part.unflatten(-1, (-1, FEATURES)).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        made = self.core(self, *self.operands(x), mask)
        return x + self.o(made.transpose(1, 2).flatten(2))


def written(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * FEATURES**-0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ v


def in_place(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.matmul(q, k.mT)
    scores *= FEATURES**-0.5
    if mask is not None:
        scores += mask
    return torch.matmul(torch.softmax(scores, dim=3), v)


def scaled_queries(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.matmul(q / torch.tensor(FEATURES).sqrt(), k.transpose(2, 3))
    if mask is not None:
        scores = torch.where(mask < -1, torch.tensor(-1e9), scores)
    return torch.matmul(nn.Softmax(dim=-1)(scores), v)


def folded(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).div(FEATURES**0.5)
    if mask is not None:
        scores = (scores.view(-1, HEADS, *scores.shape[1:]) + mask).view(scores.shape)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = functional.dropout(weights, 0.1, False)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS))


def biased(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    bias = torch.zeros(1, q.shape[2], k.shape[2]) if mask is None else mask[0].expand(1, -1, -1)
    flat = [t.reshape(-1, *t.shape[2:]) for t in (q, k, v)]
    bias = bias.expand(flat[0].shape[0], -1, -1)
    scores = bias.baddbmm(flat[0], flat[1].mT, beta=1.0, alpha=FEATURES**-0.5)
    weights = scores.view(-1, HEADS, *scores.shape[1:]).softmax(-1)
    return torch.bmm(weights.view(scores.shape), flat[2]).unflatten(0, (-1, HEADS))


def einsum(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / FEATURES**0.5
    if mask is not None:
        scores = scores.masked_fill(mask < -1, float("-inf"))
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)


def einsum_apart(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (t.permute(2, 0, 1, 3) for t in (q, k, v))
    scores = torch.einsum("jbnd,ibnd->bnij", k, q) * FEATURES**-0.5
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=3)
    return torch.einsum("bnij,jbnd->ibnd", weights, v).permute(1, 2, 0, 3)


def tempered(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    seen = torch.ones(1) if mask is None else (mask == 0).to(q)
    scores = self.temperature * (q @ k.mT)
    return (scores * seen - 1e9 * (1 - seen)).softmax(-1) @ v


def capped(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q @ k.mT) * FEATURES**-0.5
    scores = torch.tanh(scores / 2.0) * 2.0
    if mask is not None:
        scores = scores + mask
    return scores.float().softmax(-1).type_as(q) @ v


def sinking(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q @ k.mT) * FEATURES**-0.5
    if mask is not None:
        scores = scores + mask
    ends = self.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    scores = torch.cat([scores, ends], dim=-1)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return scores.softmax(-1)[..., :-1] @ v


def cropped(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    further = functional.pad(k, (0, 0, 0, 2))
    scores = (q @ further.mT)[..., : k.shape[2]] * FEATURES**-0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ v


def steadied(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q @ k.mT) * FEATURES**-0.5
    if mask is not None:
        scores = scores + mask
    scores = scores - scores.amax(-1, keepdim=True).detach()
    return scores.softmax(-1) @ v


def repeated(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(groups, dim=1)
    v = v[:, :, None].expand(-1, -1, groups, -1, -1).reshape(q.shape)
    return written(self, q, k, v, mask)


def tiled(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k = k.repeat(1, groups, 1, 1)
    v = v[:, None].expand(-1, groups, -1, -1, -1).reshape(q.shape)
    return functional.scaled_dot_product_attention(q, k, v, mask)


def shared(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    k, v = k.squeeze(1), v.squeeze(1)
    scores = torch.einsum("bhid,bjd->bhij", q, k) * FEATURES**-0.5
    if mask is not None:
        scores = scores + mask
    return torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v)


def fused(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, mask)


def fused_folded(self: Projected, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
    mask = None if mask is None else mask[0]
    return functional.scaled_dot_product_attention(q, k, v, mask).unflatten(0, (-1, HEADS))


WAYS = [
    *(written, in_place, scaled_queries, folded, biased, einsum, einsum_apart, capped),
    *(tempered, sinking, cropped, steadied, fused, fused_folded),
]


def module(way: Callable[..., Tensor], heads: int = HEADS) -> Projected:
    return randomise(Projected(way, heads), torch.randint(1 << 30, ()).item()).eval()


def traits(made: Projected) -> dict[str, Any]:
    """How the softmax of a way of writing differs from the usual one."""
    return {
        "scale": made.temperature if made.core is tempered else None,
        "cap": 2.0 if made.core is capped else None,
        "sinks": made.sinks if made.core is sinking else None,
    }


def expected(made: Projected, prefix: Prefix, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = made.operands(x)
    out = by_hand(q, k, v, prefix.k, prefix.v, mask, **traits(made))
    return x + made.o(out.transpose(1, 2).flatten(2))


MASK = torch.full((LENGTH, LENGTH), -1e9).triu(1)[None]


@pytest.mark.parametrize("own", [False, True], ids=["new alone", "own too"])
@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@pytest.mark.parametrize("way", WAYS)
def test_written_in_any_way(way: Callable[..., Tensor], masked: bool, own: bool) -> None:
    made, x = module(way), torch.randn(BATCH, LENGTH, WIDTH)
    mask = MASK if masked else None
    (prefix,) = wire(made, x, own)
    assert (prefix.core.heads, prefix.core.query_heads) == (HEADS, HEADS)
    assert (prefix.core.keys, prefix.core.values) == (FEATURES, FEATURES)
    torch.testing.assert_close(made(x, mask), expected(made, prefix, x, mask))
    one = x[:, :1]
    torch.testing.assert_close(made(one), expected(made, prefix, one, None))


@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@pytest.mark.parametrize(("way", "heads"), [(repeated, 2), (repeated, 1), (tiled, 1), (shared, 1)])
def test_heads_before_they_are_repeated(
    way: Callable[..., Tensor], heads: int, masked: bool
) -> None:
    made, x = module(way, heads), torch.randn(BATCH, LENGTH, WIDTH)
    (prefix,) = wire(made, x)
    assert (prefix.core.heads, prefix.core.query_heads) == (heads, HEADS)
    mask = MASK if masked else None
    torch.testing.assert_close(made(x, mask), expected(made, prefix, x, mask))


def test_tiled_heads_are_as_many_as_queries() -> None:
    site = read(module(tiled, 2), torch.randn(BATCH, LENGTH, WIDTH)).places["attention"][0]
    assert site.core is not None
    assert site.core.heads == HEADS


@pytest.mark.parametrize("way", WAYS)
def test_every_function_of_a_change(way: Callable[..., Tensor]) -> None:
    made, x = module(way), torch.randn(BATCH, LENGTH, WIDTH)
    core = read(made, x).places["attention"][0].core
    assert core is not None
    prefix = Prefix(core)
    scale = torch.rand(HEADS, 1, FEATURES) + 0.5
    change = by_functions(
        HEADS,
        query=lambda q: q * scale,
        key=lambda k: in_front(prefix.k, k * scale),
        value=lambda v: in_front(prefix.v, v + scale),
        output=lambda o: o * scale,
        revealed=NEW,
    )
    q, k, v = made.operands(x)
    out = by_hand(q * scale, k * scale, v + scale, prefix.k, prefix.v, **traits(made))
    with rerouted([(core, change)]):
        found = made(x)
    torch.testing.assert_close(found, x + made.o((out * scale).transpose(1, 2).flatten(2)))
    with rerouted([(core, by_functions(HEADS, key=lambda k: k * scale))]):
        found = made(x)
    made.k.weight.data *= scale.reshape(-1, 1)
    made.k.bias.data *= scale.reshape(-1)
    torch.testing.assert_close(found, made(x))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_new_keys_and_values(way: Callable[..., Tensor]) -> None:
    made, x = module(way), torch.randn(BATCH, LENGTH, WIDTH)
    (prefix,) = wire(made, x)
    found = torch.autograd.grad(made(x).square().sum(), [prefix.k, prefix.v, made.k.weight])
    wanted = torch.autograd.grad(
        expected(made, prefix, x, None).square().sum(), [prefix.k, prefix.v, made.k.weight]
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("way", [fused, sinking])
def test_compiled_as_one_graph(way: Callable[..., Tensor]) -> None:
    made = module(way)
    (prefix,) = wire(made, torch.randn(BATCH, LENGTH, WIDTH))
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (LENGTH, 8):
        x = torch.randn(BATCH, length, WIDTH)
        torch.testing.assert_close(compiled(x), made(x))
        found = torch.autograd.grad(compiled(x).square().sum(), [prefix.k, prefix.v])
        wanted = torch.autograd.grad(made(x).square().sum(), [prefix.k, prefix.v])
        torch.testing.assert_close(found, wanted)


class Twice(nn.Module):
    """Two attentions one after the other, with a softmax that routes in between."""

    def __init__(self, first: Callable[..., Tensor], second: Callable[..., Tensor]):
        super().__init__()
        self.first, self.second = module(first), module(second)
        self.router = nn.Parameter(torch.randn(WIDTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first.core(self.first, *self.first.operands(x), None).transpose(1, 2).flatten(2)
        chosen = functional.softmax(functional.linear(x, self.router.T), -1)
        x = x * chosen.amax(-1, keepdim=True)
        return self.second.core(self.second, *self.second.operands(x), None)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("second", [written, fused])
@pytest.mark.parametrize("first", [folded, fused])
def test_the_order_of_cores(first: Any, second: Any, order: int) -> None:
    both, x = Twice(first, second), torch.randn(BATCH, LENGTH, WIDTH)
    prefix = Prefix(replace(CORE, order=order, among=2))
    give(both, prefix)
    found = both(x)
    kept = [both.first, both.second][order]
    way = kept.core
    kept.core = lambda self, q, k, v, _: by_hand(q, k, v, prefix.k, prefix.v)
    del both.forward
    torch.testing.assert_close(found, both(x))
    assert way in (first, second)


def test_modules_inside_are_rerouted_by_themselves() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.own = module(written), module(fused)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return self.own.core(self.own, *self.own.operands(x), None)

    outer, x = Outer(), torch.randn(BATCH, LENGTH, WIDTH)
    inside, outside = Prefix(CORE), Prefix(replace(CORE, order=1, among=2))
    give(outer.inner, inside)
    give(outer, outside)
    between = expected(outer.inner, inside, x, None)
    wanted = by_hand(*outer.own.operands(between), outside.k, outside.v)
    torch.testing.assert_close(outer(x), wanted)


def test_a_core_that_never_came_is_an_error() -> None:
    made, x = module(written), torch.randn(BATCH, LENGTH, WIDTH)
    prefix = Prefix(replace(CORE, path="block.attention", order=1, among=2))
    give(made, prefix)
    with pytest.raises(SurgeryError, match="S430") as caught:
        made(x)
    assert "block.attention" in str(caught.value)
    assert "sdpa" in str(caught.value)


def test_weights_that_never_meet_values_are_an_error() -> None:
    def lost(self: Projected, q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
        return (q @ k.mT).softmax(-1).gather(-1, torch.zeros(1, 1, 1, 1, dtype=torch.long)) * v

    made, x = module(lost), torch.randn(1, 1, WIDTH)
    give(made, Prefix(CORE))
    with pytest.raises(SurgeryError, match="S430"):
        made(x)


def test_an_error_inside_stays_what_it_is() -> None:
    prefix = Prefix(CORE)
    with pytest.raises(ZeroDivisionError), rerouted([(prefix.core, prefix.change())]):
        _ = 1 / 0


def test_new_keys_come_with_new_values() -> None:
    with pytest.raises(ValueError, match="together"):
        CoreFunctions(key=lambda k: k, revealed=2)


def test_threads_have_their_own() -> None:
    plain, changed = module(written), module(written)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    (prefix,) = wire(changed, x)
    before, after = plain(x), expected(changed, prefix, x, None)
    wrong: list[int] = []

    def run(each: nn.Module, wanted: Tensor) -> None:
        for i in range(50):
            if not torch.allclose(each(x), wanted, atol=1e-5):
                wrong.append(i)

    threads = [
        threading.Thread(target=run, args=pair) for pair in ((plain, before), (changed, after)) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Pieces(Projected):
    """One attention for each of the documents in a row, as for images of several sizes."""

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        operands = [t.split(lengths, dim=2) for t in self.operands(x)]
        made = [self.core(self, *one, None) for one in zip(*operands, strict=True)]
        return x + self.o(torch.cat(made, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("seen", [[3, 4], [7]])
def test_as_many_pieces_as_there_are(seen: list[int]) -> None:
    """Each has the new keys, whatever the number was when the model was read."""
    model = randomise(Pieces(fused)).eval()
    example = (torch.randn(1, 7, WIDTH), seen)
    (site,) = read(model, example).places["attention"]
    assert site.core.among == len(seen)
    prefix = Prefix(site.core)
    change = prefix.change()
    with rerouted([(core, change) for core in site.core.each]):
        found = model(example[0], [2, 1, 4])
    model.core = lambda self, q, k, v, _: by_hand(q, k, v, prefix.k, prefix.v)
    torch.testing.assert_close(found, model(example[0], [2, 1, 4]))


def test_more_attentions_than_are_known() -> None:
    """Written in products, several cannot be told apart."""
    model, x = randomise(Pieces(written)).eval(), torch.randn(1, 7, WIDTH)
    (site,) = read(model, (x, [7])).places["attention"]
    prefix = Prefix(site.core)
    give(model, prefix)
    model(x, [7])
    with pytest.raises(SurgeryError, match="S430"):
        model(x, [3, 4])
