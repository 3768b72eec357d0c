"""Kernels that the passes put in place of several operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor


def add_product(base: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """Base + scale · hidden @ upᵀ over any leading dims, in one kernel where shapes allow."""
    if base.dim() == 2:
        return torch.addmm(base, hidden, up.t(), alpha=scale)
    if base.dim() < 2 or base.shape[:-1] != hidden.shape[:-1]:
        return torch.add(base, functional.linear(hidden, up), alpha=scale)
    rows = torch.addmm(base.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=scale)
    return rows.view(base.shape)


def dropped_linear(x: Tensor, weight: Tensor, rate: float, training: bool) -> Tensor:
    """linear(dropout(x), weight). In training a mask of one byte an element is kept for backward.

    The dropped copy of ``x`` is made again from ``x``, which is alive anyway.
    """
    if not training or rate == 0:
        return functional.linear(x, weight)
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return functional.linear(functional.dropout(x, rate, True), weight)
    return _DroppedLinear.apply(x, weight, rate)  # type: ignore[no-any-return]


class _DroppedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rate: float) -> Tensor:
        mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - rate)
        ctx.save_for_backward(x, weight, mask)
        ctx.scale = 1 / (1 - rate) if rate < 1 else 0.0
        return functional.linear(x * mask, weight) * ctx.scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight, mask = ctx.saved_tensors
        scaled = gradient * ctx.scale
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = (scaled @ weight) * mask
        if ctx.needs_input_grad[1]:
            to_weight = _outer(scaled, x * mask)
        return to_x, to_weight, None


def _outer(gradient: Tensor, x: Tensor) -> Tensor:
    """gradientᵀ @ x, summed over all leading dims."""
    return gradient.reshape(-1, gradient.shape[-1]).t() @ x.reshape(-1, x.shape[-1])


def magnitude(
    x: Tensor,
    weight: Tensor,
    hidden: Tensor,
    up: Tensor,
    scale: float,
    factor: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Factor ⊙ (x @ weightᵀ + scale · hidden @ upᵀ) + bias.

    While ``factor`` trains, the product is not kept for its gradient but computed again, which
    costs one product with ``weight`` in backward and saves a tensor as large as the output.
    """
    if (
        torch.is_grad_enabled()
        and factor.requires_grad
        and not torch.is_autocast_enabled(x.device.type)
    ):
        return _Magnitude.apply(x, weight, hidden, up, scale, factor, bias)  # type: ignore[no-any-return]
    product = add_product(functional.linear(x, weight), hidden, up, scale)
    return product * factor if bias is None else torch.addcmul(bias, product, factor)


class _Magnitude(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        hidden: Tensor,
        up: Tensor,
        scale: float,
        factor: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, hidden, up, factor)
        ctx.scale = scale
        product = add_product(functional.linear(x, weight), hidden, up, scale)
        return product * factor if bias is None else torch.addcmul(bias, product, factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, hidden, up, factor = ctx.saved_tensors
        needs = ctx.needs_input_grad
        inner = gradient * factor
        to_x = inner @ weight if needs[0] else None
        to_weight = _outer(inner, x) if needs[1] else None
        to_hidden = (inner @ up) * ctx.scale if needs[2] else None
        to_up = _outer(inner, hidden) * ctx.scale if needs[3] else None
        leading = tuple(range(gradient.dim() - 1))
        to_factor = to_bias = None
        if needs[5]:
            product = add_product(functional.linear(x, weight), hidden, up, ctx.scale)
            to_factor = (gradient * product).sum(leading) if leading else gradient * product
        if needs[6]:
            to_bias = gradient.sum(leading) if leading else gradient
        return to_x, to_weight, to_hidden, to_up, None, to_factor, to_bias
