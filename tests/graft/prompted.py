"""A prompt wired into a model by subclasses, as generated forwards would do it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgery.anatomy.read import read
from surgery.anatomy.site import Tokens
from surgery.graft import token_masks
from surgery.graft.tokens import TokenTap, extended, filled, restored, token_tap, trimmed


def tokens_of(model: nn.Module, stack: int = 0) -> Tokens:
    found = read(model).places["tokens"][stack].tokens
    assert found is not None
    return found


def random_prompt(model: nn.Module, n: int, stack: int = 0, seed: int = 1) -> torch.Tensor:
    width = model.get_submodule(tokens_of(model, stack).embedding).weight.shape[1]
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def with_prompt(model: nn.Module, prompt: torch.Tensor, stack: int = 0) -> TokenTap:
    """Put ``prompt`` in front of the tokens of a stack; it is the reader's ``prompt`` to train."""
    tokens = tokens_of(model, stack)
    tap = token_tap(model, tokens)
    reader, exit = model.get_submodule(tokens.reader), model.get_submodule(tokens.exit.path)
    reader.prompt = nn.Parameter(prompt.clone())
    before = type(reader)

    class Reader(before):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = extended(self.tap, self.prompt, args, kwargs)
            return restored(self.tap, before.forward(self, *args, **kwargs))

    embedding = model.get_submodule(tokens.embedding)
    looked_up = type(embedding)

    class Embedding(looked_up):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return filled(self.tap, looked_up.forward(self, *args, **kwargs))

    last = type(exit)

    class Exit(last):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = last.forward(self, *args, **kwargs)
            index = tokens.exit.index
            if index is None:
                return trimmed(self.tap, output)
            if isinstance(output, dict):
                key = list(output)[index]
                output[key] = trimmed(self.tap, output[key])
                return output
            return (*output[:index], trimmed(self.tap, output[index]), *output[index + 1 :])

    wired = [(reader, Reader), (embedding, Embedding)]
    if exit is not reader:
        wired.append((exit, Exit))
    for module, adapted in wired:
        module.__dict__["tap"] = tap
        module.__class__ = adapted
    token_masks.keep_plain(model)
    return tap
