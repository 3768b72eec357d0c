"""Every way to differentiate a loss of some tensors, held against one that is known to be right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

Tensors = tuple[Tensor, ...]
Loss = Callable[..., Tensor]


def leaves(tensors: Sequence[Tensor]) -> Tensors:
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def twice(loss: Loss, tensors: Sequence[Tensor], along: Tensors) -> tuple[Tensors, Tensors]:
    """The gradient, and the product of the Hessian with ``along``, by two backwards."""
    at = leaves(tensors)
    first = torch.autograd.grad(loss(*at), at, create_graph=True)
    second = torch.autograd.grad(dot(first, along), at, materialize_grads=True)
    return tuple(t.detach() for t in first), second


def by_steps(loss: Loss, tensors: Sequence[Tensor], along: Tensors) -> tuple[Tensors, Tensors]:
    """The same by central differences: of values for the gradient's part along ``along``."""
    step = 1e-5

    def at(sign: int) -> Tensors:
        return leaves([t + sign * step * v for t, v in zip(tensors, along, strict=True)])

    def gradient(at: Tensors) -> Tensors:
        return torch.autograd.grad(loss(*at), at)

    slope = (loss(*at(1)) - loss(*at(-1))).detach() / (2 * step)
    pairs = zip(gradient(at(1)), gradient(at(-1)), strict=True)
    return (slope,), tuple((a - b) / (2 * step) for a, b in pairs)


def ways(
    loss: Loss, tensors: Sequence[Tensor], along: Tensors, batches: bool
) -> dict[str, tuple[Tensors, int]]:
    """What each way to differentiate finds, and of which order it is (1, 2, or 0 for a
    slope and 3 for a value).

    Without ``batches`` of parameters where a model chooses by what it computes.
    """
    plain = tuple(t.detach().clone() for t in tensors)
    every = tuple(range(len(plain)))
    gradient = grad(loss, argnums=every)
    stacks = tuple(torch.stack([t, t + v]) for t, v in zip(plain, along, strict=True))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(plain, along, strict=True)]
        tangent = forward_ad.unpack_dual(loss(*duals)).tangent
        assert tangent is not None
    at = leaves(tensors)
    again = checkpoint(loss, *at, use_reentrant=False)
    first = torch.autograd.grad(again, at, create_graph=True)
    second = torch.autograd.grad(dot(first, along), at, materialize_grads=True)
    value = loss(*at)
    batch = torch.stack([torch.ones_like(value), 2 * torch.ones_like(value)])
    batched = torch.autograd.grad(value, at, batch, is_grads_batched=True)
    found: dict[str, tuple[Tensors, int]] = {}
    if batches:
        found["a batch of parameters"] = (tuple(g[0] for g in vmap(gradient)(*stacks)), 1)
        found["values of a batch"] = ((vmap(loss)(*stacks)[0],), 3)
    return {
        **found,
        "func.grad": (gradient(*plain), 1),
        "func.jvp": ((jvp(loss, plain, along)[1],), 0),
        "forward_ad": ((tangent,), 0),
        "forward over reverse": (jvp(gradient, plain, along)[1], 2),
        "reverse over reverse": (
            vjp(lambda *t: dot(gradient(*t), along), *plain)[1](torch.ones_like(value)),
            2,
        ),
        "checkpointed": (tuple(t.detach() for t in first), 1),
        "checkpointed, twice": (second, 2),
        "a batch of gradients": (tuple(t[1] / 2 for t in batched), 1),
    }


def assert_derivatives(
    loss: Loss,
    tensors: Sequence[Tensor],
    known: Loss | None = None,
    tolerance: float = 1e-9,
    batches: bool = True,
) -> None:
    """Every way agrees with the derivatives of ``known``, or with differences of the loss itself.

    Differences know nothing of `detach`: a loss with one needs a ``known`` one with the same.
    """
    generator = torch.Generator().manual_seed(0)
    along = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors)
    first, second = twice(loss, tensors, along)
    if known is None:
        slope, hessian = by_steps(loss, tensors, along)
        _near((dot(first, along),), slope, "gradient", 1e-5)
        _near(second, hessian, "Hessian", 1e-5)
    else:
        for found, right, words in zip(
            (first, second), twice(known, tensors, along), ("gradient", "Hessian"), strict=True
        ):
            _near(found, right, words, tolerance)
    right = {0: (dot(first, along),), 1: first, 2: second, 3: (loss(*tensors),)}
    for words, (found, order) in ways(loss, tensors, along, batches).items():
        _near(found, right[order], words, tolerance)


def _near(found: Sequence[Tensor], right: Sequence[Tensor], words: str, tolerance: float) -> None:
    size = max(1.0, *(float(t.detach().abs().max()) for t in right if t.numel()))
    for a, b in zip(found, right, strict=True):
        assert a.shape == b.shape, words
        assert not a.numel() or float((a - b).detach().abs().max()) <= tolerance * size, words
