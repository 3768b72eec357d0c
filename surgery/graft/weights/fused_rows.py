"""Low-rank updates of some of a layer's outputs, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.graft.graphs import fused
from surgery.graft.graphs.ordinary import gradients, is_first_order, runs_as_written
from surgery.graft.weights.slices import blocks, put_rows, take_rows
from surgery.layers.transposed import transposed_linear
from surgery.rules.rows import Layout

Update = tuple[Layout, Tensor, Tensor, float, float, bool]
"""Rows, and what is added to them: A, B, scale, rate of dropout, whether it is on."""


def low_rank_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
    updates: Sequence[Update],
) -> Tensor:
    """X Wᵀ + bias, with scale · dropout(x) Aᵀ Bᵀ added to the features of each of ``updates``.

    Nothing as large as the result is copied, forward or backward.
    """
    factors = [tensor for update in updates for tensor in update[1:3]]
    rates = [rate if training else 0.0 for *_, rate, training in updates]
    if x.dim() < 2 or any(rates) or not runs_as_written(x, weight, bias, *factors):
        return _composed(x, weight, bias, transposed, updates)
    meta = tuple((layout, scale) for layout, _, _, scale, *_ in updates)
    if torch.is_grad_enabled():
        return _LowRankRows.apply(x, weight, bias, transposed, meta, *factors)  # type: ignore[no-any-return]
    return _forward(x, weight, bias, transposed, meta, factors)[0]


def _base(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if transposed:
        return x @ weight if bias is None else transposed_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def _composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
    updates: Sequence[Update],
) -> Tensor:
    result = _base(x, weight, bias, transposed)
    for layout, down, up, scale, rate, training in updates:
        hidden = fused.dropped_linear(x, down, rate, training)
        part = fused.add_product(take_rows(result, layout, -1), hidden, up, scale)
        result = put_rows(result, part, layout, -1)
    return result


Meta = tuple[tuple[Layout, float], ...]


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
    meta: Meta,
    factors: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The result, and the hidden states of each update [rows, r]."""
    result = _base(x, weight, bias, transposed)
    outer, rows = result.flatten(0, -2), x.flatten(0, -2)
    hidden: list[Tensor] = []
    for (layout, scale), down, up in zip(meta, factors[::2], factors[1::2], strict=True):
        hidden.append(rows @ down.t())
        if layout[3] == 1:
            take_rows(outer, layout, -1).addmm_(hidden[-1], up.t(), alpha=scale)
        else:
            added = hidden[-1] @ up.t()
            into = blocks(outer, layout, -1)
            into.add_(added.view(into.shape), alpha=scale)
    return result, hidden


class _LowRankRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        meta: Meta,
        *factors: Tensor,
    ) -> Tensor:
        result, hidden = _forward(x, weight, bias, transposed, meta, factors)
        ctx.save_for_backward(x, weight, *factors, *hidden)
        ctx.transposed, ctx.meta = transposed, meta
        return fused.unviewed(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, *rest = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, _, *needs = ctx.needs_input_grad
        if not is_first_order(gradient):

            def composed(x: Tensor, weight: Tensor, *factors: Tensor) -> Tensor:
                pairs = zip(ctx.meta, factors[::2], factors[1::2], strict=True)
                updates = [(layout, a, b, scale, 0, False) for (layout, scale), a, b in pairs]
                return _composed(x, weight, None, ctx.transposed, updates)

            tensors = (x, weight, *rest[: 2 * len(ctx.meta)])
            found = gradients(composed, tensors, (needs_x, needs_weight, *needs), gradient)
            to_bias = fused.summed(gradient) if needs_bias else None
            return (*found[:2], to_bias, None, None, *found[2:])
        outer, rows = gradient.flatten(0, -2), x.flatten(0, -2)
        to_x = to_weight = to_bias = None
        if needs_bias:
            to_bias = outer.sum(0)
        if needs_weight:
            to_weight = rows.t() @ outer if ctx.transposed else outer.t() @ rows
        if needs_x:
            to_x = outer @ (weight.t() if ctx.transposed else weight)
        to_factors: list[Tensor | None] = []
        hidden = rest[2 * len(ctx.meta) :]
        for i, (layout, scale) in enumerate(ctx.meta):
            down, up = rest[2 * i : 2 * i + 2]
            part = take_rows(outer, layout, -1)
            turned = (part @ up).mul_(scale)
            to_factors.append(turned.t() @ rows if needs[2 * i] else None)
            to_factors.append((part.t() @ hidden[i]).mul_(scale) if needs[2 * i + 1] else None)
            if to_x is not None:
                to_x.addmm_(turned, down)
        if to_x is not None:
            to_x = to_x.view(x.shape)
        return to_x, to_weight, to_bias, None, None, *to_factors
