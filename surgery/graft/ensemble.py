"""Many prompts of one model in one batch, and what most of them answer.

Lester et al. 2021, arXiv:2104.08691, section 6: the batch is repeated, each time behind another
prompt, and a majority decides.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from surgery.graft.tokens import TokenTap


@contextmanager
def together(tap: TokenTap, prompts: Tensor) -> Generator[None]:
    """Inside, the i-th of N equal parts of a batch runs behind ``prompts[i]`` [N, n, features]."""
    before, tap.instead = tap.instead, prompts
    try:
        yield
    finally:
        tap.instead = before


def ensemble(
    tap: TokenTap,
    prompts: Tensor,
    inputs: Mapping[str, Any],
    answer: Callable[[dict[str, Any]], Tensor],
) -> Tensor:
    """What most of the prompts answer to each sequence; the first of them where as many differ.

    Args:
        tap: that of the stack which has a prompt.
        prompts: [N, n, features], to stand there instead.
        inputs: arguments of the model for a batch.
        answer: gives the answers [rows, ...] to the inputs repeated N times, each of one row: as
            ``lambda x: model(**x).logits.argmax(-1)`` or ``lambda x: model.generate(**x)``.

    Returns:
        Tensor: an answer for each sequence, [batch, ...].

    """
    many = prompts.shape[0]
    with together(tap, prompts):
        answers = answer(_repeated(inputs, many))
    votes = answers.view(many, answers.shape[0] // many, *answers.shape[1:])
    rows = votes.reshape(*votes.shape[:2], -1)
    same = (rows.unsqueeze(1) == rows.unsqueeze(0)).all(3)
    places = torch.arange(many, device=answers.device)
    chosen = (same.sum(1) * many - places.unsqueeze(1)).argmax(0)
    return votes[chosen, torch.arange(votes.shape[1], device=answers.device)]


def _repeated(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """All that has a value for each sequence, ``times`` times over."""
    batch = max(value.shape[0] for value in inputs.values() if isinstance(value, Tensor))
    return {
        name: torch.cat([value] * times)
        if isinstance(value, Tensor) and value.shape[0] == batch
        else value
        for name, value in inputs.items()
    }
