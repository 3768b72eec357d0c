"""The content of tensors, as bytes and as a digest; numpy is not needed for it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.notes import UnseenError


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements in order, not copied where they lie so on the CPU."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if not plain.numel():
        return memoryview(b"")
    held: Any = (ctypes.c_ubyte * plain.nbytes).from_address(plain.data_ptr())
    held.tensor = plain  # The memory lives as long as the view of it.
    return memoryview(held).cast("B")


def numbers_of(tensors: Iterable[Tensor]) -> str:
    """A digest of all numbers in ``tensors``.

    Raises:
        UnseenError: where these cannot be read.

    """
    found = blake2b(digest_size=16)
    for tensor in tensors:
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise UnseenError
        found.update(bytes_of(tensor))
    return found.hexdigest()
