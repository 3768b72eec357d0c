"""The content of tensors as bytes, and files of them; numpy is not needed for either."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

import safetensors
from torch import Tensor

# safetensors has no types of its own.
_library: Any = safetensors


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it lies in one piece on the CPU."""
    whole = tensor.detach().cpu().contiguous()
    if not whole.numel():
        return memoryview(b"")
    held: Any = (ctypes.c_ubyte * whole.nbytes).from_address(whole.data_ptr())
    # The view holds the array, and the array what it lies in.
    held.tensor = whole
    return memoryview(held).cast("B")


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write ``tensors`` as one safetensors file.

    Raises:
        OSError: if it cannot be written.
        SafetensorError: where the library says so.

    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {
        name: _library.TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tensor.shape,
            data_ptr=tensor.data_ptr(),
            data_len=tensor.nbytes,
        )
        for name, tensor in whole.items()
    }
    _library.serialize_file(described, path, dict(metadata))
