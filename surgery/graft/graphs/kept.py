"""What depends on parameters alone, kept between forwards that record no gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from surgery.graft.graphs.ordinary import runs_unseen, without_autocast


class Kept(dict[str, "_Folded"]):
    """The folded values of one module; a copy of it starts without them."""

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


class _Folded:
    """A value, and what its sources were: a storage cannot be another while a reference is held."""

    __slots__ = ("copies", "marks", "storages", "value")

    def __init__(self, tensors: tuple[Tensor, ...], compute: Callable[[], Tensor]):
        self.marks = _marks(tensors)
        self.storages = [StorageWeakRef(t.untyped_storage()) for t in tensors]
        self.copies = [t.detach().clone() for t in tensors if t.requires_grad]
        self.value = compute().detach()

    def holds(self, tensors: tuple[Tensor, ...]) -> bool:
        try:
            marks = _marks(tensors)
        except RuntimeError:  # tensors of inference mode have no versions
            return False
        trained = [t for t in tensors if t.requires_grad]
        return (
            self.marks == marks
            and len(trained) == len(self.copies)
            and all(torch.equal(t, c) for t, c in zip(trained, self.copies, strict=True))
        )


def _marks(tensors: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    return [
        (t.untyped_storage()._cdata, t.data_ptr(), t._version, t.dtype, t.shape, t.stride())
        for t in tensors
    ]


def fold(module: nn.Module, key: str, tensors: tuple[Tensor, ...]) -> Tensor:
    """What depends on parameters alone: computed anew while it may train, else kept.

    It is computed in the dtypes of its sources, whatever autocast says, so that it is the same
    whoever asks first, and in training as after. The kept value is tied to the versions and
    storages of the tensors it came from, and is dropped by the first forward that records
    gradients. Of those that train the values are compared, too: writing to `parameter.data`, as
    averages of weights do, changes no version. Nothing is kept where a compiler, a transform or a
    mode sees to what is computed.
    """

    def compute() -> Tensor:
        cls: Any = type(module)
        with without_autocast(tensors[0]):
            return cls.surgery_functions[key](module, *_alike(tensors))

    if torch.compiler.is_compiling():
        return compute()
    kept: Kept = module.__dict__.setdefault("_surgery_kept", Kept())
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        kept.clear()
        return compute()
    if not runs_unseen(*tensors):
        return compute()
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return compute()
    found = kept.get(key)
    if found is not None and found.holds(tensors):
        return found.value
    if any(t.is_inference() or t.is_meta for t in tensors):
        return compute()
    # Another thread may write to the tensors from here on: then this is not found again.
    with torch.inference_mode(False), torch.no_grad():
        found = kept[key] = _Folded(tensors, compute)
    return found.value


def _alike(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors in one dtype: some may be kept wider than others, for autocast to bring down."""
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) == 1:
        return tensors
    wide = reduce(torch.promote_types, dtypes)
    return tuple(t.to(wide) for t in tensors)
