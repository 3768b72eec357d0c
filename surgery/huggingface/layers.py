"""Kinds of layers that only transformers has."""

from __future__ import annotations

from torch import nn


def is_conv1d(cls: type[nn.Module]) -> bool:
    """Whether ``cls`` is `Conv1D`: a linear layer whose weight is [in, out].

    GPT-2, GPT-1, ImageGPT and Decision Transformer have it.
    """
    return (cls.__name__, cls.__module__) == ("Conv1D", "transformers.pytorch_utils")
