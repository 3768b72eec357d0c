"""A prompt wired into a model by subclasses, as generated forwards would do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from surgery.anatomy.read import read
from surgery.anatomy.site import Tokens
from surgery.graft.graphs import calls
from surgery.graft.passing import within
from surgery.graft.tokens.sequences import (
    TokenSlots,
    extended,
    filled,
    restored,
    token_slots,
    trimmed,
)
from surgery.huggingface import generation

SLOTS = "_surgery_stack0"


def tokens_of(model: nn.Module, stack: int = 0) -> Tokens:
    found = read(model).places["tokens"][stack].operator
    assert isinstance(found, Tokens)
    return found


def random_prompt(model: nn.Module, n: int, stack: int = 0, seed: int = 1) -> torch.Tensor:
    width = model.get_submodule(tokens_of(model, stack).embedding).weight.shape[1]
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def _reader(self: Any, args: Any, kwargs: Any, base: Callable[..., Any]) -> Any:
    args, kwargs = extended(self.__dict__[SLOTS], self.prompt, args, kwargs)
    return restored(self.__dict__[SLOTS], base(self, *args, **kwargs))


def _embedding(self: Any, args: Any, kwargs: Any, base: Callable[..., Any]) -> Any:
    return filled(self.__dict__[SLOTS], base(self, *args, **kwargs))


def _exit(self: Any, args: Any, kwargs: Any, base: Callable[..., Any]) -> Any:
    slots, output = self.__dict__[SLOTS], base(self, *args, **kwargs)
    index = slots.tokens.exit.index
    if index is None:
        return trimmed(slots, output)
    if isinstance(output, dict):
        index = list(output)[index]
    return calls.with_first(output, index, trimmed(slots, output[index]))


def with_prompt(model: nn.Module, prompt: torch.Tensor, stack: int = 0) -> nn.Module:
    """Put ``prompt`` in front of the tokens of a stack; it is the reader's ``prompt`` to train."""
    tokens = tokens_of(model, stack)
    slots = token_slots(model, tokens)
    parts = {tokens.embedding: _embedding, tokens.reader: _reader}
    parts.setdefault(tokens.exit.path, _exit)
    for path, part in parts.items():
        adapt(model.get_submodule(path), part, slots, part is _reader)
    model.get_submodule(tokens.reader).prompt = nn.Parameter(prompt.clone())
    generation.keep_plain(model)
    return model


def adapt(
    module: nn.Module, part: Callable[..., Any], slots: TokenSlots, reads: bool = False
) -> None:
    """Give ``module`` a subclass of its class that runs ``part`` around its forward.

    One that ``reads`` the ids has the slots open meanwhile.
    """
    before = type(module)
    names = {"__module__": before.__module__, "__qualname__": before.__qualname__}

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return part(self, args, kwargs, before.forward)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return within(self.__dict__[SLOTS].open if reads else (), run, self, args, kwargs)

    module.__dict__[SLOTS] = slots
    module.__class__ = type(before.__name__, (before,), {"forward": forward, **names})
