"""Kinds of layers that only transformers has."""

from __future__ import annotations

CONV1D = "transformers.pytorch_utils.Conv1D"
"""A linear layer whose weight is [in, out]: GPT-2, GPT-1, ImageGPT and Decision Transformer have it."""
