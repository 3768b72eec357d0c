"""Attention with new keys written out by hand, and models made to have them either way."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.read import read
from surgery.graft.attention.axes import changed
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.cores import ATTENTION, NAMES
from surgery.graft.attention.masks import reveal
from surgery.graft.attention.reroute import rerouted

NEW = 3


class Prefix(nn.Module):
    """New keys and values of one core, [heads, new, features]."""

    def __init__(self, core: AttentionCore, own: bool = False):
        super().__init__()
        self.core, self.own = core, own
        self.k = nn.Parameter(torch.randn(core.heads, NEW, core.keys))
        self.v = nn.Parameter(torch.randn(core.heads, NEW, core.values))

    def change(self) -> CoreFunctions:
        return by_functions(
            self.core.query_heads,
            key=lambda k: in_front(self.k, k),
            value=lambda v: in_front(self.v, v),
            revealed=NEW,
            own=self.own,
        )


def by_functions(heads: int, **settings: Any) -> CoreFunctions:
    """A change by functions of operands, and the whole core as these make it."""
    change = CoreFunctions(**settings)
    operands = {"query": change.query, "key": change.key, "value": change.value}

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip(NAMES, args, strict=False)), **kwargs}
        for name, function in operands.items():
            given[name] = changed(given[name], function, heads) if function else given[name]
        if change.revealed:
            causal = given.pop("is_causal", False)
            given["attn_mask"] = reveal(
                given.get("attn_mask"), causal, change.revealed, given["query"], given["key"]
            )
        result = ATTENTION(**given)
        return result if change.output is None else changed(result, change.output, heads)

    return replace(change, attend=attend)


def in_front(new: Tensor, own: Tensor) -> Tensor:
    """``new`` [heads, new, features] before ``own`` [batch, heads or a multiple, length, features]."""
    repeated = new.repeat_interleave(own.shape[1] // new.shape[0], 0).to(own.dtype)
    return torch.cat([repeated.expand(own.shape[0], -1, -1, -1), own], dim=2)


def by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    new_k: Tensor,
    new_v: Tensor,
    mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(q [new_k, k]ᵀ) [new_v, v] of four axes each; ``mask``, to add, is for own keys."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    k, v = in_front(new_k, k), in_front(new_v, v)
    scores = torch.einsum("bhsd,bhtd->bhst", q, k) * (
        q.shape[-1] ** -0.5 if scale is None else scale
    )
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        own = mask.expand(*scores.shape[:-1], k.shape[2] - NEW)
        scores = scores + nn.functional.pad(own, (NEW, 0))
    if sinks is not None:
        ends = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:2], scores.shape[2], 1)
        scores = torch.cat([scores, ends], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return torch.einsum("bhst,bhte->bhse", weights, v)


def wire(model: nn.Module, example: Any = None, own: bool = False) -> list[Prefix]:
    """Give every attention of ``model`` a random prefix, as an adapted class would."""
    prefixes: dict[str, list[Prefix]] = {}
    for site in read(model, example).places["attention"]:
        assert site.core is not None
        assert site.core.obstacle is None, site.core
        prefix = Prefix(site.core, own)
        model.get_submodule(site.core.path).__dict__["prefix"] = prefix
        prefixes.setdefault(site.core.path, []).append(prefix)
    for path, held in prefixes.items():
        give(model.get_submodule(path), *held)
    return [prefix for held in prefixes.values() for prefix in held]


def give(module: nn.Module, *held: Prefix) -> None:
    """Reroute the cores of ``module`` in each call."""
    base = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with rerouted([(prefix.core, prefix.change()) for prefix in held]):
            return base(*args, **kwargs)

    module.forward = forward


@contextmanager
def plainly(model: nn.Module) -> Generator[None]:
    """The model with attention by hand inside, through the interface of transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("by_hand", _interface)
    AttentionMaskInterface.register("by_hand", eager_mask)
    before = model.config._attn_implementation
    forwards = [(m, m.__dict__.pop("forward")) for m in model.modules() if "prefix" in m.__dict__]
    model.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for module, forward in forwards:
            module.forward = forward


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    prefix = module.__dict__["prefix"]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.where(attention_mask, 0.0, -1e9)
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else attention_mask + position_bias
    out = by_hand(query, key, value, prefix.k, prefix.v, attention_mask, scaling, softcap, s_aux)
    return out.transpose(1, 2).contiguous(), None
