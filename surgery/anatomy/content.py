"""The content of tensors as bytes; numpy is not needed for it."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements in order, not copied where they lie so on the CPU."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if not plain.numel():
        return memoryview(b"")
    held: Any = (ctypes.c_ubyte * plain.nbytes).from_address(plain.data_ptr())
    held.tensor = plain  # The memory lives as long as the view of it.
    return memoryview(held).cast("B")
