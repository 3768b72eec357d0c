"""Prompts that start as words: rows of the model's own embedding table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.huggingface.vocabulary import token_ids
from surgery.language.diagnostics import error


def embedded_words(
    table: Tensor, count: int, text: str, tokenizer: Any, generator: torch.Generator
) -> Tensor:
    """``count`` rows of ``table``: those of the tokens of ``text``, then others drawn evenly.

    Raises:
        SurgeryError: S418 without a tokenizer for the text, or if the text is too long.

    """
    ids: list[int] = []
    if text:
        if tokenizer is None:
            raise error(
                "S418",
                "a prompt that starts as a text needs the model's tokenizer",
                help="pass tokenizer=, or leave `text` out to start from words drawn at random",
            )
        ids = token_ids(tokenizer, text)
    if len(ids) > count:
        raise error(
            "S418",
            f"the text is {len(ids)} tokens long, and the prompt {count}",
            help="make the prompt longer, or the text shorter",
        )
    drawn = torch.randint(table.shape[0], (count - len(ids),), generator=generator, device="cpu")
    return table.detach()[
        torch.cat([torch.tensor(ids, dtype=torch.long, device="cpu"), drawn])
    ].clone()
