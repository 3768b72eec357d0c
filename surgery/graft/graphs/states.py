"""Hidden states as a module has them, and as the program of a rule has them.

Functions that generated forwards call, at module level so that graphs pickle.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.language.diagnostics import error


def check_rank(value: Tensor, rank: int, name: str) -> Tensor:
    """``value``, unless it has other dims than a rule names: examples would be taken for tokens.

    Raises:
        SurgeryError: S411 if ``value`` has not ``rank`` dims.

    """
    if value.dim() != rank:
        raise error(
            "S411",
            f"a rule names {rank} dims of the hidden states, and {name} was given {[*value.shape]}",
            help="with fewer, examples would be taken for tokens: give it a dim for each, if of one",
        )
    return value


def check_dims(value: Tensor, rank: int, name: str) -> Tensor:
    """``value``, unless it has other dims than states with their features in front had before.

    Raises:
        SurgeryError: S428 if ``value`` has not ``rank`` dims.

    """
    if value.dim() != rank:
        raise error(
            "S428",
            f"{name} was given {[*value.shape]}, and {rank} dims with the features second when the "
            "model was read",
            help="pass example_inputs of the dims that the model is to run on",
        )
    return value


def in_sequence(rows: Tensor, like: Tensor) -> Tensor:
    """States of other leading dims as [batch, length, features], of which ``like`` tells."""
    return rows.reshape(*like.shape[:2], rows.shape[-1])


def as_given(states: Tensor, like: Tensor) -> Tensor:
    """``states`` with the leading dims of ``like``."""
    return states.reshape(*like.shape[:-1], states.shape[-1])


def own_group(value: Tensor, out: int, spatial: int) -> Tensor:
    """What each output has of its own group: [groups, features, …] → [out, …].

    A single feature serves all outputs of its group; of ``out`` features each serves its own.
    """
    groups, features = value.shape[-2 - spatial], value.shape[-1 - spatial]
    if features == 1:
        return value.squeeze(-1 - spatial).repeat_interleave(out // groups, -1 - spatial)
    parts: Tensor = torch.unflatten(value, -1 - spatial, (groups, -1))
    own: Tensor = parts.diagonal(dim1=-3 - spatial, dim2=-2 - spatial)
    return own.movedim(-1, -2 - spatial).flatten(-2 - spatial, -1 - spatial)


def linear_along(value: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """``linear`` over another axis than the last."""
    return functional.linear(value.movedim(axis, -1), weight, bias).movedim(-1, axis)


def drop_rows(rows: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout of one-hot ids: whole rows are dropped, as their only element is."""
    if not training or rate == 0:
        return rows
    return rows * torch.nn.functional.dropout(torch.ones_like(rows[..., :1]), rate, True)
