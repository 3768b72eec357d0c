"""Short digests that tell one base model from another, and say where they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from surgery.anatomy.content import bytes_of

SAMPLES = 64
"""Elements looked at in each parameter, evenly spread."""


def digests(model: nn.Module) -> dict[str, str]:
    """For each parameter its dtype and shape, and a digest of a sample of its values.

    The work is the same for a large tensor as for a small one; tensors on the meta device have no
    values, and count by dtype and shape.
    """
    return {name: digest(parameter) for name, parameter in model.named_parameters()}


def fingerprint(parts: Mapping[str, str]) -> str:
    """One digest of all :func:`digests`."""
    text = repr(sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(saved: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words, how a model differs from the one that ``saved`` was taken of."""
    missing = [n for n in saved if n not in now]
    extra = [n for n in now if n not in saved]
    if missing or extra:
        name, verb = (missing[0], "lacks") if missing else (extra[0], "has also")
        more = len(missing) + len(extra) - 1
        return f"this one {verb} `{name}`{f', and {more} more names differ' if more else ''}"
    formed = [n for n in saved if saved[n].split()[:2] != now[n].split()[:2]]
    if formed:
        name = formed[0]
        was, found = (" ".join(d[name].split()[:2]) for d in (saved, now))
        return f"`{name}` was {was} and is {found}"
    valued = [n for n in saved if saved[n] != now[n]]
    return f"{len(valued)} of {len(saved)} parameters have other values, first `{valued[0]}`"


def digest(parameter: torch.Tensor) -> str:
    """That of one parameter."""
    tensor = parameter.detach()
    form = f"{str(tensor.dtype).removeprefix('torch.')} {'×'.join(map(str, tensor.shape))}"
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return form
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].contiguous().cpu()
    return f"{form} {hashlib.blake2b(bytes_of(sample), digest_size=6).hexdigest()}"
