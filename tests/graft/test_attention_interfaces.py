"""Attentions that run out of sight, by flex or flash attention, with new keys in front.

Flash attention needs a kernel of a GPU: its place takes attention by hand with the same contract,
under transformers' own code for padding. Flex attention has no backward on a CPU.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import surgery
from surgery.graft.attention import interfaces
from surgery.graft.attention.change import CoreFunctions
from surgery.huggingface.attention_functions import FLEX, opened
from tests.graft.attending import NEW, Prefix, by_hand
from tests.graft.test_attention_cores import CORE, FEATURES, HEADS
from tests.laws.strategies import randomise_added
from tests.models import build

# The compiler's own, where a model's mask is made.
pytestmark = pytest.mark.filterwarnings("ignore")


def pair(name: str, spec: str, implementation: str) -> tuple[nn.Module, nn.Module]:
    """A model adapted with its attention written out, and with ``implementation``; equal else."""
    plain, other = build(name), build(name)
    plain.set_attn_implementation("eager")
    other.config._attn_implementation = implementation
    for model in (plain, other):
        randomise_added(surgery.apply(model, spec, seed=0))
    other.load_state_dict(plain.state_dict())
    return plain, other


def batch(length: int, side: str) -> dict[str, Tensor]:
    ids = torch.randint(3, 96, (2, length))
    mask = torch.ones_like(ids)
    mask[1, slice(3) if side == "left" else slice(-3, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def test_flex_attention_as_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer keys' heads than queries', and scores that are capped."""
    from transformers.integrations.flex_attention import WrappedFlexAttention

    torch._dynamo.reset()
    # Compiled kernels take half a minute; what the function gets is the same.
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda _: flex_attention)
    plain, flex = pair("gemma2", "on attention apply prefix(3)", "flex_attention")
    flex.requires_grad_(False)
    given = batch(9, "left")
    real = given["attention_mask"].bool()
    found, expected = flex(**given).logits[real], plain(**given).logits[real]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with surgery.disabled(flex):
        assert (flex(**given).logits[real] - found).abs().max() > 1e-3
    del given["attention_mask"]
    torch.testing.assert_close(flex(**given).logits, plain(**given).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new", [NEW, 16, 21])
def test_new_keys_fill_blocks_of_their_own(new: int) -> None:
    """Full blocks, blocks in part and none of one mask, over which new keys change nothing."""
    torch._dynamo.reset()
    length, size = 70, 16
    q, k, v = (torch.randn(2, HEADS, length, FEATURES) for _ in range(3))
    k_new, v_new = (torch.randn(HEADS, new, FEATURES) for _ in range(2))
    first = torch.tensor([0, 11])

    def shows(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (j >= first[b])

    mask = create_block_mask(shows, 2, None, length, length, "cpu", BLOCK_SIZE=size)

    def run(_: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, None]:
        return flex_attention(q, k, v, block_mask=mask).transpose(1, 2), None

    run.__module__ = FLEX
    change = CoreFunctions(
        key=lambda k: torch.cat([k_new.expand(2, -1, -1, -1), k], 2),
        value=lambda v: torch.cat([v_new.expand(2, -1, -1, -1), v], 2),
        revealed=new,
    )
    found, _ = interfaces.attend(change, q, k, v, mask, run, None, {})
    i, j = torch.arange(length)[:, None], torch.arange(length)
    seen = (i >= j) & (j >= first[:, None, None, None])
    scores = q @ torch.cat([k_new.expand(2, -1, -1, -1), k], 2).mT * FEATURES**-0.5
    scores[..., new:] = scores[..., new:].masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ torch.cat([v_new.expand(2, -1, -1, -1), v], 2)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def flash_by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """[batch, length, heads, features]; the last query sees the last key where it is causal."""
    assert window_size == (-1, -1)
    queries, keys, heads, groups = q.shape[1], k.shape[1], q.shape[2], q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * (softmax_scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        hidden = torch.ones(queries, keys).tril(keys - queries) == 0
        scores = scores.masked_fill(hidden, float("-inf"))
    assert scores.shape[1] == heads
    return (scores.softmax(-1) @ v).transpose(1, 2)


def flash_of_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """[places of all sequences, heads, features]."""
    settings = (dropout_p, softmax_scale, causal, window_size, softcap, deterministic)
    ends = [t.tolist() for t in (cu_seqlens_q, cu_seqlens_k)]
    made: list[Tensor] = []
    for (q0, q1), (k0, k1) in zip(*map(pairwise, ends), strict=True):
        made.append(flash_by_hand(q[None, q0:q1], k[None, k0:k1], v[None, k0:k1], *settings)[0])
    return torch.cat(made)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_flash_attention_utils as utilities

    process = utilities._lazy_define_process_function(flash_of_ragged)
    pads = (utilities._pad_input, utilities._unpad_input)
    kernels = (flash_by_hand, flash_of_ragged, None, *pads), (process, None)
    monkeypatch.setattr(utilities, "lazy_import_flash_attention", lambda *_, **__: kernels)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("spec", ["on attention apply prefix(3)", "unipelt"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_flash_attention_as_written_out(name: str, spec: str, side: str) -> None:
    plain, flash = pair(name, spec, "flash_attention_2")
    given = batch(9, side)
    real = given["attention_mask"].bool()
    gradients: list[dict[str, Tensor]] = []
    results: list[Tensor] = []
    for model in (plain, flash):
        results.append(model(**given)[0][real])
        results[-1].square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert any("prefix" in n and bool(g.any()) for n, g in gradients[0].items())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)
    del given["attention_mask"]
    torch.testing.assert_close(flash(**given)[0], plain(**given)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("cached", [True, False])
def test_generation_by_flash_attention(cached: bool) -> None:
    plain, flash = pair("llama", "on attention apply prefix(3)", "flash_attention_2")
    settings = {"max_new_tokens": 5, "do_sample": False, "use_cache": cached}
    given = batch(6, "left")
    found, expected = (m.generate(**given, **settings) for m in (flash, plain))
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("flash")
def test_what_flash_attention_has_no_place_for() -> None:
    _, model = pair("mistral", "on attention apply prefix(3)", "flash_attention_2")
    ids = torch.randint(3, 96, (1, 7))
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with pytest.raises(surgery.SurgeryError, match=r"S432[\s\S]*packed[\s\S]*flex_attention"):
        model(ids, position_ids=packed)
    window = model.config.sliding_window
    assert window is not None
    with pytest.raises(surgery.SurgeryError, match=rf"S432[\s\S]*last {window} keys"):
        model(torch.randint(3, 96, (1, window)))


@pytest.mark.usefixtures("flash")
def test_changed_queries_and_results() -> None:
    class Asking(nn.Linear):
        is_causal = False
        config = build("llama").config

    from transformers.integrations.flash_attention import flash_attention_forward

    q, k, v = (torch.randn(2, HEADS, 5, FEATURES) for _ in range(3))
    prefix = Prefix(CORE)
    change = CoreFunctions(
        query=lambda q: 2 * q,
        key=prefix.change().key,
        value=prefix.change().value,
        output=lambda o: o + torch.arange(HEADS).view(1, -1, 1, 1),
        revealed=NEW,
    )
    found, _ = interfaces.attend(
        change, q, k, v, None, flash_attention_forward, Asking(1, 1), {"dropout": 0.0}
    )
    expected = by_hand(2 * q, k, v, prefix.k, prefix.v) + torch.arange(HEADS).view(1, -1, 1, 1)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_models_are_left_as_they_are() -> None:
    """The registry of attention functions is that of before, and so are forwards that ask none."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    before = dict(ALL_ATTENTION_FUNCTIONS), AttentionInterface.get_interface
    model = build("llama")
    model.config._attn_implementation = "flex_attention"
    cls = type(model.model.layers[0].self_attn)
    forward = cls.forward
    surgery.apply(model, "on attention apply prefix(3)", seed=0)
    assert (dict(ALL_ATTENTION_FUNCTIONS), AttentionInterface.get_interface) == before
    surgery.remove(model)
    assert type(model.model.layers[0].self_attn) is cls
    assert cls.forward is forward
    assert opened(nn.Linear.forward) is nn.Linear.forward


@pytest.mark.usefixtures("flash")
def test_another_implementation_computes_the_same_adapter(tmp_path: Path) -> None:
    plain, flash = pair("llama", "unipelt", "flash_attention_2")
    surgery.save(flash, tmp_path)
    given = batch(9, "left")
    real = given["attention_mask"].bool()
    expected = flash(**given).logits[real]
    surgery.remove(plain)
    surgery.load(plain, tmp_path)
    torch.testing.assert_close(plain(**given).logits[real], expected, rtol=1e-4, atol=1e-5)
    flash.set_attn_implementation("sdpa")
    torch.testing.assert_close(flash(**given).logits[real], expected, rtol=1e-4, atol=1e-5)
