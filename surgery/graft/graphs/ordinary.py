"""Whether operations run just as they are called, and how to have them do so.

A kernel knows first derivatives, and a kept value knows the tensors that it came from. Compilers,
transforms, forward-mode differentiation and dispatch modes look further; for them the plain
operations run, of which torch knows everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch._C import (  # pyright: ignore
    _are_functorch_transforms_active,
    _is_any_autocast_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import is_legacy_batchedtensor  # pyright: ignore
from torch.autograd import forward_ad

_PLAIN = frozenset({Tensor, nn.Parameter, type(None)})


def runs_unseen(*tensors: Tensor | None) -> bool:
    """Whether nothing but torch itself sees what is done with ``tensors``.

    A compiler does, a tracer, a transform of `torch.func`, forward-mode differentiation and a
    dispatch mode; and subclasses of tensors see to it themselves.
    """
    return not (
        torch.compiler.is_compiling()
        or is_transformed()
        or _len_torch_dispatch_stack()
        or _is_tracing()
        or not _PLAIN.issuperset(map(type, tensors))
    )


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is on."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0  # pyright: ignore


def runs_as_written(*tensors: Tensor | None) -> bool:
    """Whether operations on ``tensors`` run as they are called, unseen and in their dtypes."""
    return runs_unseen(*tensors) and not _is_any_autocast_enabled()


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Operations in the dtypes that they are given, on the device of ``like``."""
    if not _is_any_autocast_enabled():
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def is_first_order(gradient: Tensor) -> bool:
    """Whether a backward given ``gradient`` runs for its values alone, and a kernel has these.

    No kernel conjugates, so complex numbers are left to torch.
    """
    return (
        not (torch.is_grad_enabled() or gradient.is_complex())
        and runs_as_written(gradient)
        and not is_legacy_batchedtensor(gradient)
    )


def gradients(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    gradient: Tensor,
) -> list[Tensor | None]:
    """The gradients of ``function(*tensors)`` as autograd finds them, which can go on from there.

    They are those of its arguments, each by itself, even where one was made of another.
    """
    if not any(needs):
        return [None] * len(needs)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(gradient):
        given = [
            tensor.view_as(tensor) if tensor is not None and needed else tensor
            for tensor, needed in zip(tensors, needs, strict=True)
        ]
        wanted = [t for t, needed in zip(given, needs, strict=True) if t is not None and needed]
        result = function(*given)
        found = iter(torch.autograd.grad(result, wanted, gradient, create_graph=create_graph))
    return [next(found) if needed else None for needed in needs]
