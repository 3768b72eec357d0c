"""A safetensors file, written tensor by tensor.

The library's own writer needs numpy, holds all bytes at once, and makes the file itself, so that
neither its mode nor the moment at which it is on the disk could be decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import BinaryIO

import torch
from torch import Tensor

from surgery.anatomy.content import bytes_of
from surgery.language.diagnostics import error
from surgery.planning.fingerprint import dtype_name

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
"""What safetensors calls the dtypes of torch."""


def check_storable(name: str, tensor: Tensor) -> None:
    """Refuse what such a file cannot hold.

    Raises:
        SurgeryError: S535 for a tensor without values, or of a kind that safetensors does not know.

    """
    if tensor.device.type == "meta":
        raise error("S535", f"`{name}` is on the meta device: it has no values to save")
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or dtype_name(tensor) not in _NAMES:
        kind = f"a {type(tensor).__name__} of {dtype_name(tensor)}"
        raise error("S535", f"`{name}` is {kind}, which safetensors files do not hold")


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write ``tensors`` and ``metadata`` in the format of safetensors; equal ones give equal files.

    Raises:
        SurgeryError: as :func:`check_storable`.

    """
    for name, tensor in tensors.items():
        check_storable(name, tensor)
    # Wide elements first, so that all are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + prod(tensor.shape) * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[dtype_name(tensor)],
            "shape": [*tensor.shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        file.write(bytes_of(tensors[name]))
