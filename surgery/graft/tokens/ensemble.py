"""Many prompts of one model in one batch, and what most of them answer.

Lester et al. 2021, arXiv:2104.08691, section 6: the batch is repeated, each time behind another
prompt, and a majority decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.site import Tokens
from surgery.graft.adapter_file import read_adapter
from surgery.graft.channel import holding
from surgery.graft.state import surgery_of
from surgery.graft.tokens.sequences import TokenSlots
from surgery.language.diagnostics import error


@contextmanager
def together(slots: TokenSlots, prompts: Tensor) -> Generator[None]:
    """Inside, the i-th of N equal parts of a batch runs behind ``prompts[i]`` [N, n, features].

    This is so in this thread alone.
    """
    with holding(slots.instead, prompts):
        yield


def ensemble(
    slots: TokenSlots,
    prompts: Tensor,
    inputs: Mapping[str, Any],
    answer: Callable[[dict[str, Any]], Tensor],
) -> Tensor:
    """What most of the prompts answer to each sequence; the first of them where as many differ.

    Args:
        slots: those of the stack which has a prompt.
        prompts: [N, n, features], to stand there instead.
        inputs: arguments of the model for a batch.
        answer: gives the answers [rows, ...] to the inputs repeated N times, each of one row: as
            ``lambda x: model(**x).logits.argmax(-1)`` or ``lambda x: model.generate(**x)``.

    Returns:
        Tensor: an answer for each sequence, [batch, ...].

    """
    many = prompts.shape[0]
    with together(slots, prompts):
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


def prompt_of(model: nn.Module) -> tuple[TokenSlots, str]:
    """The slots of the one stack of ``model`` that has a prompt, and the name of its vectors.

    Raises:
        SurgeryError: S532 if there is not just one prompt, of vectors that no network makes, or if
            the model is a graph.

    """
    surgery = surgery_of(model)
    edits = [e for e in surgery.edits() if isinstance(e.site.operator, Tokens)] if surgery else []
    named = [t.name for e in edits for t in e.tensors]
    if len(edits) != 1 or len(named) != 1:
        raise error(
            "S532",
            f"an ensemble needs one prompt in the model, and here are {len(edits)}"
            if len(edits) != 1
            else "an ensemble needs prompts of vectors, and a network makes this one",
            help="apply `on tokens[0] apply prompt(n)`"
            if len(edits) != 1
            else "fold it: surgery.fold(model)",
        )
    reader = model.get_submodule(edits[0].owner)
    slots = next((v for v in vars(reader).values() if isinstance(v, TokenSlots)), None)
    if slots is None:
        raise error(
            "S532",
            "this is a graph, in which one prompt is joined to all sequences, so no others can run beside it",
            help="ensemble the model that it was made of; or load one prompt after the other with "
            "`surgery.load`, and take the answer that most of them give",
        )
    return slots, named[0]


def vote(
    model: nn.Module,
    adapters: Sequence[str | os.PathLike[str]],
    inputs: Mapping[str, Any],
    answer: Callable[[dict[str, Any]], Tensor],
) -> Tensor:
    """What most of the prompts saved in ``adapters`` answer; ``model`` has a prompt like them.

    Raises:
        SurgeryError: S532 as :func:`prompt_of`, or if an adapter holds no such prompt; S514 if one
            cannot be read.

    """
    slots, name = prompt_of(model)
    own = model.get_parameter(name)
    prompts: list[Tensor] = []
    for path in adapters:
        tensors = read_adapter(path).tensors
        if name not in tensors or tensors[name].shape != own.shape:
            raise error("S532", f"`{path}` holds no `{name}` of {[*own.shape]}")
        prompts.append(tensors[name].to(own))
    return ensemble(slots, torch.stack(prompts), inputs, answer)
