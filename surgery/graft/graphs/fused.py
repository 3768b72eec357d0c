"""Kernels that the passes put in place of several operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.graft.graphs.ordinary import gradients, is_first_order, runs_as_written


def add_product(base: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """Base + scale · hidden @ upᵀ over any leading dims, in one kernel where shapes allow."""
    if base.dim() == 2:
        return torch.addmm(base, hidden, up.t(), alpha=scale)
    if base.dim() < 2 or base.shape[:-1] != hidden.shape[:-1]:
        return torch.add(base, functional.linear(hidden, up), alpha=scale)
    rows = torch.addmm(base.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=scale)
    return rows.view(base.shape)


def dropped_linear(x: Tensor, weight: Tensor, rate: float, training: bool) -> Tensor:
    """linear(dropout(x), weight)."""
    return functional.linear(functional.dropout(x, rate, training), weight)


def low_rank(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    rate: float = 0,
    training: bool = False,
    factor: Tensor | None = None,
) -> Tensor:
    """Factor ⊙ (x Wᵀ + scale · dropout(x) downᵀ upᵀ) + bias; without ``factor`` it is 1.

    Kept for backward are `x`, which is alive anyway, the hidden states of the small rank and, with
    dropout, a mask of one byte an element. The product that the factor's gradient needs is
    computed again. The order of the small products is that in which they run fastest.
    """
    if not training or rate == 0:
        rate = 0.0
    if x.dim() < 2 or not runs_as_written(x, weight, bias, down, up, factor):
        hidden = functional.linear(functional.dropout(x, rate, training), down)
        return _composed(x, weight, bias, hidden, up, scale, factor)
    if torch.is_grad_enabled():
        return _LowRank.apply(x, weight, bias, down, up, scale, rate, factor)  # type: ignore[no-any-return]
    return _forward(x, weight, bias, down, up, scale, rate, factor)[0]


def _composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    up: Tensor,
    scale: float,
    factor: Tensor | None,
) -> Tensor:
    """The same in plain operations, given the hidden states."""
    if factor is None:
        return add_product(functional.linear(x, weight, bias), hidden, up, scale)
    product = add_product(functional.linear(x, weight), hidden, up, scale)
    product = product * factor.to(product.dtype)
    return product if bias is None else product + bias.to(product.dtype)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    rate: float,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result, the hidden states, and the mask of what dropout keeps."""
    result = functional.linear(x, weight, bias if factor is None else None)
    kept = None
    if rate:
        kept = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - rate)
    hidden = _hidden(x, down, kept, rate)
    result.flatten(0, -2).addmm_(hidden.flatten(0, -2), up.t(), alpha=scale)
    if factor is not None:
        result.mul_(factor)
        if bias is not None:
            result.add_(bias)
    return result, hidden, kept


def _hidden(x: Tensor, down: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """linear(dropout(x), down) where dropout keeps ``kept``."""
    if kept is None:
        return functional.linear(x, down)
    return functional.linear(x * kept, down).mul_(_gain(rate))


def unviewed(result: Tensor) -> Tensor:
    """The same storage under a tensor that is no view.

    linear gives a view for more than two dims, and autograd forbids writing to a view that a
    Function returns; a model may (`y += …`).
    """
    if not result._is_view():
        return result
    shape, strides = result.shape, result.stride()
    fresh = result.new_empty(0)
    return fresh.set_(result.untyped_storage(), result.storage_offset(), shape, strides)


def summed(gradient: Tensor) -> Tensor:
    """The gradient of what was added to each row of a result."""
    return gradient.sum(tuple(range(gradient.dim() - 1)))


def _gain(rate: float) -> float:
    return 1 / (1 - rate) if rate < 1 else 0.0


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        rate: float,
        factor: Tensor | None,
    ) -> Tensor:
        result, hidden, kept = _forward(x, weight, bias, down, up, scale, rate, factor)
        ctx.save_for_backward(x, weight, down, up, hidden, kept, factor)
        ctx.scale, ctx.rate = scale, rate
        return unviewed(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, down, up, hidden, kept, factor = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_down, needs_up, _, _, needs_factor = (
            ctx.needs_input_grad
        )
        if not is_first_order(gradient):

            def composed(
                x: Tensor, weight: Tensor, down: Tensor, up: Tensor, factor: Tensor | None
            ) -> Tensor:
                hidden = _hidden(x, down, kept, ctx.rate)
                return _composed(x, weight, None, hidden, up, ctx.scale, factor)

            needs = (needs_x, needs_weight, needs_down, needs_up, needs_factor)
            found = gradients(composed, (x, weight, down, up, factor), needs, gradient)
            to_bias = summed(gradient) if needs_bias else None
            return (*found[:2], to_bias, *found[2:4], None, None, found[4])
        outer = gradient.flatten(0, -2)
        rows, small = x.flatten(0, -2), hidden.flatten(0, -2)
        to_x = to_weight = to_bias = to_down = to_up = to_factor = None
        if needs_bias:
            to_bias = outer.sum(0)
        if needs_factor:
            product = functional.linear(rows, weight).addmm_(small, up.t(), alpha=ctx.scale)
            to_factor = product.mul_(outer).sum(0)
        if factor is not None:
            outer = outer * (factor if factor.dtype == outer.dtype else factor.to(outer.dtype))
        if needs_up:
            to_up = (small.t() @ outer).t().mul(ctx.scale)
        turned = (up.t() @ outer.t()).mul(ctx.scale * (_gain(ctx.rate) if ctx.rate else 1))
        masked = None if kept is None else kept.flatten(0, -2)
        if needs_down:
            to_down = turned @ (rows if masked is None else rows * masked)
        if needs_weight:
            to_weight = outer.t() @ rows
        if needs_x:
            to_x = outer @ weight
            if masked is None:
                to_x = to_x.addmm_(turned.t(), down)
            else:
                to_x = to_x.addcmul_(turned.t() @ down, masked)
            to_x = to_x.view(x.shape)
        return to_x, to_weight, to_bias, to_down, to_up, None, None, to_factor
