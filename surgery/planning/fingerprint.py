"""Short digests that tell one base model from another: of samples for plans, of all for files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from surgery.anatomy.content import bytes_of
from surgery.planning.facts import canonical

SAMPLES = 64
"""Elements of each parameter that a plan looks at, evenly spread."""


def digests(model: nn.Module) -> dict[str, str]:
    """For each parameter its dtype and shape, and a digest of a sample of its values.

    The work is the same for a large tensor as for a small one; tensors on the meta device have no
    values, and count by dtype and shape.
    """
    return {name: digest(parameter) for name, parameter in model.named_parameters()}


def fingerprint(parts: Mapping[str, str]) -> str:
    """One digest of all :func:`digests`."""
    return hashlib.sha256(canonical(dict(parts)).encode()).hexdigest()[:16]


def digest(parameter: torch.Tensor) -> str:
    """That of one parameter."""
    tensor = parameter.detach()
    form = f"{dtype_name(tensor)} {'×'.join(map(str, tensor.shape))}"
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return form
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
    return f"{form} {hashlib.blake2b(bytes_of(sample), digest_size=6).hexdigest()}"


def dtype_name(tensor: torch.Tensor) -> str:
    """Its dtype as a word: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def content_digest(tensor: torch.Tensor) -> str | None:
    """The first 128 bits of the SHA-256 of all bytes of ``tensor``; None if it has no values."""
    found = hashlib.sha256()
    for part in _parts(tensor.detach()):
        if part.device.type == "meta":
            return None
        found.update(bytes_of(part))
    return found.hexdigest()[:32]


def content_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str | None]:
    """:func:`content_digest` of each, of several large ones at once."""
    large = {n: t for n, t in tensors.items() if t.numel() * t.element_size() >= 2**20}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(large, pool.map(content_digest, large.values()), strict=True))
    return {n: found[n] if n in found else content_digest(t) for n, t in tensors.items()}


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor of a class of its own (a quantised one, say) is made of."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        names: list[str] = flatten()[0]
        return [part for name in names for part in _parts(getattr(tensor, name))]
    return [tensor.to_dense() if tensor.layout != torch.strided else tensor]
