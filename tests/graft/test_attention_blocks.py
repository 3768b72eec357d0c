"""New keys where queries see blocks or windows of the model's own: every query sees them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import surgery
from surgery.anatomy.read import read
from surgery.graft.attention.reroute import rerouted
from surgery.language.diagnostics import SurgeryError
from tests.graft.attending import Prefix, by_hand
from tests.models import randomise

BATCH, BLOCKS, BLOCK, HEADS, FEATURES = 2, 3, 4, 5, 6
LENGTH, WIDTH, GLOBAL = BLOCKS * BLOCK, HEADS * FEATURES, 2
HIDDEN = -1e9

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def cut(operand: Tensor) -> Tensor:
    """[batch, heads, length, …] in blocks of the length."""
    return operand.unflatten(2, (BLOCKS, BLOCK))


def dotted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = (cut(t).permute(0, 2, 3, 1, 4) for t in (q, k, v))
    scores = torch.einsum("...qhd,...khd->...hqk", q, k)
    scores += bias[:, None]
    weights = functional.dropout(scores.float().softmax(-1).type_as(scores), 0.1, False)
    made = torch.einsum("...hqk,...khd->...qhd", weights, v)
    return made.flatten(1, 2).transpose(1, 2)


def multiplied(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = map(cut, (q, k, v))
    return ((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).flatten(2, 3)


def written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = map(cut, (q, k, v))
    scores = torch.where(bias > HIDDEN, torch.matmul(q, k.mT) + bias, torch.tensor(HIDDEN))
    weights = torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))
    weights = functional.dropout(weights, 0.1, False)
    return torch.matmul(weights, v).flatten(start_dim=2, end_dim=3)


def joined(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Two products with keys, one softmax, and two products with values."""
    first_k, first_v = k[:, :, :GLOBAL], v[:, :, :GLOBAL]
    q, k, v = map(cut, (q, k, v))
    apart = torch.einsum("BHNKF,BHGF->BHNKG", q, first_k), torch.einsum("BHNKF,BHNXF->BHNKX", q, k)
    weights = (torch.cat(apart, dim=-1) + functional.pad(bias, (GLOBAL, 0))).softmax(-1)
    firsts = torch.einsum("BHNKG,BHGF->BHNKF", weights[:, :, :, :, :GLOBAL], first_v)
    own = torch.einsum("BHNKX,BHNXF->BHNKF", weights[:, :, :, :, GLOBAL:], v)
    return (firsts + own).flatten(2, 3)


def streams(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Two attentions at once, one of them over a main and a predicting stream."""
    dense = torch.block_diag(*bias).masked_fill(blocks_apart(), HIDDEN)
    main = torch.einsum("bntc,bncs->bnts", q, k.transpose(2, 3))
    main.view(main.shape)  # looked at, and left
    both = torch.stack([q, 2 * q], 1), torch.stack([k, k], 1)
    scores = torch.einsum("bnhtc,bnhsc->bnhts", both)
    main = main + dense
    weights, others = (scores + dense).softmax(-1), main.softmax(-1)
    made = torch.einsum("bntc,bncs->bnts", others, v)
    one, other = torch.einsum("bnhts,bnhsc->bnhtc", weights, torch.stack([v, v], 1)).unbind(1)
    return made + one + other


def blocks_apart() -> Tensor:
    return torch.block_diag(*torch.ones(BLOCKS, BLOCK, BLOCK)) == 0


class Blocked(nn.Module):
    """Linears around a core that is written in one of the ways above."""

    def __init__(self, way: Way):
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def operands(self, x: Tensor) -> list[Tensor]:
        """[batch, heads, length, features] each."""
        parts = (self.q(x), self.k(x), self.v(x))
        return [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.o(self.way(*self.operands(x), bias).transpose(1, 2).flatten(2))


def expected(module: Blocked, prefix: Prefix, x: Tensor, bias: Tensor) -> Tensor:
    dense = torch.block_diag(*bias).masked_fill(blocks_apart(), HIDDEN)
    q, k, v = module.operands(x)
    if module.way is joined:
        dense = functional.pad(dense, (GLOBAL, 0))
        k, v = (torch.cat([t[:, :, :GLOBAL], t], 2) for t in (k, v))
    made = by_hand(q, k, v, prefix.k, prefix.v, dense, 1.0)
    if module.way is streams:
        made = 2 * made + by_hand(2 * q, k, v, prefix.k, prefix.v, dense, 1.0)
    return x + module.o(made.transpose(1, 2).flatten(2))


def adapted(module: nn.Module, *example: Tensor) -> Prefix:
    """Give all cores of the one attention in ``module`` the same random prefix."""
    (site,) = read(module, example).places["attention"]
    assert site.core is not None
    assert site.core.obstacle is None, site.core.obstacle
    prefix = Prefix(site.core)
    give(module, prefix)
    return prefix


def give(module: nn.Module, *prefixes: Prefix) -> None:
    forward = module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        with rerouted([(core, p.change()) for p in prefixes for core in p.core.each]):
            return forward(*args, **kwargs)

    module.forward = changed


def inputs() -> tuple[Tensor, Tensor]:
    """States, and what is added to the scores of each block, with some keys hidden."""
    bias = torch.randn(BLOCKS, BLOCK, BLOCK)
    hidden = (torch.rand(bias.shape) < 0.3) & ~torch.eye(BLOCK, dtype=torch.bool)
    return torch.randn(BATCH, LENGTH, WIDTH), bias.masked_fill(hidden, HIDDEN)


@pytest.mark.parametrize("way", [dotted, multiplied, written_out, joined, streams])
def test_blocks_written_in_any_way(way: Way) -> None:
    module = randomise(Blocked(way), torch.randint(1 << 30, ()).item()).eval()
    x, bias = inputs()
    before = module(x, bias)
    prefix = adapted(module, x, bias)
    assert (prefix.core.heads, prefix.core.query_heads) == (HEADS, HEADS)
    found = module(x, bias)
    assert (found - before).abs().max() > 1e-3
    torch.testing.assert_close(found, expected(module, prefix, x, bias), rtol=1e-4, atol=1e-4)
    parameters = [prefix.k, prefix.v, module.k.weight, module.q.weight]
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    wanted = torch.autograd.grad(expected(module, prefix, x, bias).square().sum(), parameters)
    torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("way", [written_out, joined])
def test_where_new_keys_alone_can_join(way: Way) -> None:
    module = randomise(Blocked(way)).eval()
    (site,) = read(module, inputs()).places["attention"]
    assert site.core is not None
    assert site.core.fixed is not None


def test_a_change_of_own_keys_in_several_products_is_an_error() -> None:
    module, example = randomise(Blocked(joined)).eval(), inputs()
    spec = (
        "method longer() {\n"
        "  match o = attention(q, k[z, h, t, d], v[z, h, t, e], mask)\n"
        "  param s[d] = 1\n"
        "  k = s * k\n"
        "}\n"
        "on attention apply longer"
    )
    with pytest.raises(SurgeryError, match="S415") as failure:
        surgery.plan(module, spec, example_inputs=example)
    assert "several products" in str(failure.value)


def test_as_many_blocks_as_heads() -> None:
    x = torch.randn(BATCH, HEADS * BLOCK, WIDTH)

    def same(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (HEADS, BLOCK)).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2, 3)

    module = randomise(Blocked(same)).eval()
    (site,) = read(module, (x, torch.zeros(1))).places["attention"]
    assert site.core is not None
    assert site.core.heads_at == 2


def longformer(window: int = 4) -> nn.Module:
    from transformers import LongformerConfig, LongformerModel

    config = LongformerConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=40,
        attention_window=window,
        max_position_embeddings=40,
    )
    return randomise(LongformerModel(config)).eval()


def by_heads(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def in_windows(attention: Any, x: Tensor, prefix: Prefix, real: Tensor, of_all: Tensor) -> Tensor:
    """Longformer's local attention over all pairs of tokens, those too far apart hidden.

    ``of_all`` are the tokens that all others see; they are seen once more where they are near.
    """
    q, k, v = (by_heads(linear, x) for linear in (attention.query, attention.key, attention.value))
    places = torch.arange(x.shape[1])
    near = (places[:, None] - places).abs() <= attention.one_sided_attn_window_size
    local = near & real[:, None] & ~of_all[:, None]
    seen = local | of_all[:, None].expand_as(local)
    bias = torch.where(seen, 0.0, HIDDEN)[:, None]
    return by_hand(q, k, v, prefix.k, prefix.v, bias).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("with_global", [False, True], ids=["windows alone", "global tokens"])
def test_windows_of_longformer(with_global: bool) -> None:
    model = longformer()
    ids, real = torch.randint(3, 50, (3, 16)), torch.ones(3, 16, dtype=torch.bool)
    real[1, 11:] = False
    of_all = torch.zeros_like(real)
    of_all[0, [0, 9]] = of_all[2, 3] = with_global
    given = {"input_ids": ids, "attention_mask": real.long()}
    if with_global:
        given["global_attention_mask"] = of_all.long()
    prefixes = [Prefix(s.core) for s in read(model, given).places["attention"] if s.core]
    assert len(prefixes) == 1 + with_global
    assert all(p.core.obstacle is None and p.core.heads == HEADS for p in prefixes)
    attention: Any = model.encoder.layer[0].attention.self
    give(attention, *prefixes)
    seen: list[Tensor] = []
    forward = attention.forward

    def kept(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        made = forward(x, *args, **kwargs)
        seen.extend((x, made[0]))
        return made

    attention.forward = kept
    model(**given)
    x, found = seen
    wanted = in_windows(attention, x, prefixes[0], real, of_all)
    local = real & ~of_all
    torch.testing.assert_close(found[local], wanted[local], rtol=1e-4, atol=1e-4)
    if with_global:
        names = ("query_global", "key_global", "value_global")
        q, k, v = (by_heads(getattr(attention, name), x) for name in names)
        bias = torch.where(real, 0.0, HIDDEN)[:, None, None]
        wanted = by_hand(q, k, v, prefixes[1].k, prefixes[1].v, bias).transpose(1, 2).flatten(2)
        torch.testing.assert_close(found[of_all], wanted[of_all], rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found[local].square().sum(), [prefixes[0].k, prefixes[0].v])
    wanted = in_windows(attention, x, prefixes[0], real, of_all)[local].square().sum()
    exact = torch.autograd.grad(wanted, [prefixes[0].k, prefixes[0].v])
    torch.testing.assert_close(gradients, exact, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("read_with", [False, True])
def test_global_tokens_that_come_or_stay_away(read_with: bool) -> None:
    """Windows are found whether or not there were global tokens when the model was read."""
    model = longformer()
    ids, real = torch.randint(3, 50, (2, 16)), torch.ones(2, 16, dtype=torch.bool)
    of_all = torch.zeros_like(real)
    of_all[:, 0] = True
    globally = {"global_attention_mask": of_all.long()}
    site = read(model, {"input_ids": ids, **(globally if read_with else {})}).places["attention"][0]
    assert site.core is not None
    prefix = Prefix(site.core)
    attention: Any = model.encoder.layer[0].attention.self
    x: list[Tensor] = []
    attention.register_forward_hook(lambda _m, args, made: x.extend((args[0], made[0])))
    give(attention, prefix)
    model(ids, **({} if read_with else globally))
    now = torch.zeros_like(of_all) if read_with else of_all
    wanted = in_windows(attention, x[0], prefix, real, now)
    torch.testing.assert_close(x[1][~now], wanted[~now], rtol=1e-4, atol=1e-4)


def test_attention_of_two_flows_that_share_their_scores() -> None:
    """LiLT's text and layout add each other's scores; new keys of either are scored by its own."""
    from transformers import LiltConfig, LiltModel

    config = LiltConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_2d_position_embeddings=64,
        max_position_embeddings=40,
    )
    model = randomise(LiltModel(config)).eval()
    text, layout, *rest = read(model).places["attention"]
    assert (text.core and text.core.keys, layout.core and layout.core.keys) == (24, 6)
    assert len(rest) == 1  # of the last layer nothing reads the layout
    attention: Any = model.encoder.layer[0].attention.self
    prefixes = [Prefix(site.core) for site in (text, layout) if site.core]
    give(attention, *prefixes)
    x, y = torch.randn(3, 7, 48), torch.randn(3, 7, 12)
    mask = torch.zeros(3, 1, 1, 7)
    mask[1, ..., 5:] = HIDDEN
    found = attention(x, y, mask)
    named = {name: getattr(attention, name) for name in ("query", "key", "value")}
    of_text = [by_parts(linear, x) for linear in named.values()]
    of_layout = [by_parts(getattr(attention, f"layout_{name}"), y) for name in named]
    scores = [q @ k.mT * q.shape[-1] ** -0.5 for q, k, _ in (of_text, of_layout)]
    pairs = ((of_text, scores[1]), (of_layout, scores[0]))
    for (flow, other), prefix, made in zip(pairs, prefixes, found, strict=True):
        wanted = by_hand(*flow, prefix.k, prefix.v, other + mask).transpose(1, 2).flatten(2)
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def by_parts(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x).unflatten(-1, (2, -1)).transpose(1, 2)
