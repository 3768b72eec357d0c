"""A prompt in an encoder as its decoder sees it, as functions that generated forwards call.

The encoder returns the states of its prompt with those of the tokens, and the decoder attends to
all of them, as Lester et al. 2021 (arXiv:2104.08691) have it. The decoder is given the mask of the
tokens alone; that it is shorter than the states tells of the prompt (:func:`attended`), also where
the encoder ran in another call, as in `generate`. The model around both hands the states out
without the prompt (:func:`handed`), and so does the decoder with attentions to them (:func:`told`).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.anatomy.site import Memory
from surgery.graft.channel import Slot, is_open, peek, put
from surgery.graft.graphs import calls
from surgery.huggingface.outputs import each, each_of_layers
from surgery.language.diagnostics import error

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class MemorySlots:
    """What the modules share through which ``count`` vectors more reach a decoder.

    ``parameters`` are the names of the decoder's ``forward``, in order. While the module around
    both runs, ``states`` are what the encoder gave in it. ``seen`` tells whether the decoder's call
    is given the states of a prompt. ``front`` are these where the encoder goes on without them.
    """

    memory: Memory
    parameters: tuple[str, ...]
    count: int
    states: Slot = field(default_factory=lambda: Slot("the states of an encoder"))
    seen: Slot = field(default_factory=lambda: Slot("what a decoder is given"))
    front: Slot = field(default_factory=lambda: Slot("the states of a prompt"))


def memory_slots(model: nn.Module, memory: Memory, count: int) -> MemorySlots:
    """The slots for an encoder with a prompt of ``count`` vectors."""
    reader = model.get_submodule(memory.reader)
    return MemorySlots(memory, tuple(inspect.signature(reader.forward).parameters), count)


def kept(slots: MemorySlots, hidden: Tensor) -> None:
    """Keep the states of the prompt, which are dropped from ``hidden`` [batch, places, features].

    Not where the last layer runs again by itself.
    """
    if slots.memory.apart and is_open(slots.front):
        put(slots.front, hidden[:, : slots.count])


def returned(slots: MemorySlots, output: Any) -> Any:
    """What the encoder returns, with the states of its prompt and its tokens.

    Raises:
        SurgeryError: S439 if the prompt's are without gradients, and the others are not.

    """
    index, front = slots.memory.index, peek(slots.front)
    if front is not None:
        states = output if index is None else output[index]
        if torch.is_grad_enabled() and states.requires_grad and not front.requires_grad:
            raise error(
                "S439",
                "the last layer of an encoder runs where no gradients are recorded, so its prompt's "
                "states, which pass its pooler by, have none",
                help="checkpoint with use_reentrant=False",
            )
        whole = torch.cat((front, states), 1)
        output = whole if index is None else calls.with_first(output, index, whole)
    if is_open(slots.states):
        put(slots.states, output if index is None else output[index])
    return output


def handed(slots: MemorySlots, output: Any) -> Any:
    """The result of the module around, with the encoder's states of the tokens given.

    Where the encoder ran before, and the caller gave its states, they are handed back as they are.
    """
    states = peek(slots.states)
    if states is None:
        return output
    tokens = states[:, slots.count :]
    return each(output, lambda _, value: tokens if value is states else value)


def attended(slots: MemorySlots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The decoder's arguments with a mask for all states that it is given.

    Raises:
        SurgeryError: S530 if the mask fits neither the tokens nor all states.

    """
    names, memory = slots.parameters[: len(args)], slots.memory
    given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
    states = given.get(memory.states)
    mask = None if memory.mask is None else given.get(memory.mask)
    put(slots.seen, peek(slots.states) is not None)
    if not isinstance(states, Tensor) or not isinstance(mask, Tensor):
        return args, kwargs
    more = states.shape[1] - mask.shape[-1]
    if more not in (0, slots.count):
        raise error(
            "S530",
            f"a mask over {mask.shape[-1]} tokens does not fit {states.shape[1]} states of an "
            f"encoder with a prompt of {slots.count}",
            help="give the mask of the encoder's tokens, or one for all its states",
        )
    if more == 0:
        return args, kwargs
    put(slots.seen, True)
    given[str(memory.mask)] = functional.pad(mask, (more, 0), value=_seen(mask, str(memory.mask)))
    rest = {k: v for k, v in given.items() if k not in names}
    return (*(given[name] for name in names), *args[len(names) :]), rest


def _seen(mask: Tensor, name: str) -> int:
    """What says in ``mask`` that a place is seen: one that is added, or marks padding, has zeros."""
    added = mask.dim() > 2 and mask.is_floating_point()
    return 0 if added or "key_padding" in name else 1


def told(slots: MemorySlots, output: Any) -> Any:
    """The decoder's result with its attentions to the states of the tokens given."""
    if not peek(slots.seen):
        return output

    def trimmed(values: tuple[Any, ...], _: bool, across: bool) -> tuple[Any, ...]:
        return _tokens(slots, values) if across else values

    return each_of_layers(output, _attends, trimmed)


def _attends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _tokens(slots: MemorySlots, attentions: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v[..., slots.count :] if isinstance(v, Tensor) else v for v in attentions)
