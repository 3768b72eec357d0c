"""A model put back as it was, to the bit, whatever happened to it in between."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surgery.anatomy.content import bytes_of
from surgery.graft.apply import remove_specs
from surgery.graft.state import surgery_of


def checksums(model: nn.Module) -> dict[str, str]:
    """A digest of every bit of each parameter and buffer, by name."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    by_identity: dict[int, str] = {}
    for tensor in tensors.values():
        if id(tensor) not in by_identity:
            content = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            digest = hashlib.blake2b(content, digest_size=16)
            digest.update(bytes_of(tensor))
            by_identity[id(tensor)] = digest.hexdigest()
    return {name: by_identity[id(tensor)] for name, tensor in tensors.items()}


@contextmanager
def kept(model: nn.Module) -> Generator[None]:
    """Whatever is done inside, ``model`` has no graft after it, and all its own state back.

    The parameters' storage is remembered, not copied: merging and disabling swap it, so that this
    costs no memory. Buffers are copied, for they are written in training.
    """
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    training = [(m, m.training) for m in model.modules()]
    registered = [(m, dict(m._parameters)) for m in model.modules()]
    generators = (torch.get_rng_state(), random.getstate())
    try:
        yield
    finally:
        try:
            if surgery_of(model) is not None:
                remove_specs(model)
        finally:
            for module, own in registered:
                if list(map(id, own.values())) != list(map(id, module._parameters.values())):
                    module._parameters.clear()
                    module._parameters.update(own)
            for parameter, data, flag, gradient in parameters:
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
                parameter.requires_grad_(flag)
                parameter.grad = gradient
            _refill(buffers)
            for module, mode in training:
                module.__dict__["training"] = mode
            torch.set_rng_state(generators[0])
            random.setstate(generators[1])


@torch.no_grad()
def _refill(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, content in buffers:
        if bytes_of(buffer) != bytes_of(content):
            buffer.copy_(content)
