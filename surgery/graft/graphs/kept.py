"""What depends on parameters alone, kept between forwards that record no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


class Kept(dict[str, "_Folded"]):
    """The folded values of one module; a copy of it starts without them."""

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


class _Folded:
    """A value, and what its sources were: a storage cannot be another while a reference is held."""

    __slots__ = ("copies", "marks", "storages", "value")

    value: Tensor

    def __init__(self, tensors: tuple[Tensor, ...]):
        self.marks = _marks(tensors)
        self.storages = [StorageWeakRef(t.untyped_storage()) for t in tensors]
        self.copies = [t.detach().clone() for t in tensors if t.requires_grad]

    def holds(self, tensors: tuple[Tensor, ...]) -> bool:
        trained = [t for t in tensors if t.requires_grad]
        return (
            self.marks == _marks(tensors)
            and len(trained) == len(self.copies)
            and all(torch.equal(t, c) for t, c in zip(trained, self.copies, strict=True))
        )


def _marks(tensors: tuple[Tensor, ...]) -> list[tuple[int, int, int, torch.dtype]]:
    return [(t.untyped_storage()._cdata, t.data_ptr(), t._version, t.dtype) for t in tensors]


def fold(module: nn.Module, key: str, tensors: tuple[Tensor, ...]) -> Tensor:
    """What depends on parameters alone: computed anew while it may train, else kept.

    The kept value is tied to the versions and storages of the tensors it came from, and is
    dropped by the first forward that records gradients. Of those that train the values are
    compared, too: writing to `parameter.data`, as averages of weights do, changes no version.
    """
    cls: Any = type(module)
    compute: Callable[..., Tensor] = cls.surgery_functions[key]
    if torch.compiler.is_compiling():
        return compute(module, *tensors)
    kept: Kept = module.__dict__.setdefault("_surgery_kept", Kept())
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        kept.clear()
        return compute(module, *tensors)
    if any(t.is_inference() or t.is_meta or type(t) not in (nn.Parameter, Tensor) for t in tensors):
        return compute(module, *tensors)
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return compute(module, *tensors)
    found = kept.get(key)
    if found is None or not found.holds(tensors):
        # Another thread may write to the tensors from here on: then this is not found again.
        found = _Folded(tensors)
        found.value = compute(module, *tensors).detach()
        kept[key] = found
    return found.value
