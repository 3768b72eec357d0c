"""Factories that a user could name: `toy:model`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Language(nn.Module):
    """An embedding, blocks, and a head that is tied with the embedding."""

    def __init__(self, layers: int = 3, width: int = 16, words: int = 40):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Language()


def words() -> str:
    return "no model"


class Closed(nn.Module):
    """Takes what nobody could make up."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor, c: dict[str, Tensor]) -> Tensor:
        return self.inside(a) * b + c["d"]


def closed() -> nn.Module:
    return Closed()
