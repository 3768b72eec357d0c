"""A short digest that tells one base model from another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLES = 64
"""Elements looked at in each parameter, evenly spread."""


def fingerprint(model: nn.Module) -> str:
    """Digest the names, shapes, dtypes and a sample of the values of ``model``'s parameters.

    The work is the same for a large tensor as for a small one; tensors on the meta device count
    by name, shape and dtype.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
        digest.update(_sample(parameter.detach()))
    return digest.hexdigest()[:16]


def _sample(tensor: torch.Tensor) -> bytes:
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return b""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
    step = max(1, flat.numel() // SAMPLES)
    sample = flat[::step][:SAMPLES].cpu().contiguous()
    return sample.view(torch.uint8).numpy().tobytes() if sample.element_size() else b""
