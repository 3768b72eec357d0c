"""A prompt in an encoder as its decoder sees it, as functions that generated forwards call.

The encoder returns the states of its prompt with those of the tokens, and the decoder attends to
all of them, as Lester et al. 2021 (arXiv:2104.08691) have it. The decoder is given the mask of the
tokens alone; that it is shorter than the states tells of the prompt (:func:`attended`), also where
the encoder ran in another call, as in `generate`. The model around both hands the states out
without the prompt (:func:`handed`), and so does the decoder with attentions to them (:func:`told`).
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.anatomy.site import Memory
from surgery.graft.graphs import kernels
from surgery.language.diagnostics import error

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class MemoryTap:
    """What the modules share through which ``count`` vectors more reach a decoder.

    ``parameters`` are the names of the decoder's ``forward``, in order. ``within`` tells that the
    module around both runs, ``states`` what the encoder gave in it, and ``seen`` whether the
    decoder's running call is given the states of a prompt. ``front`` are these where the encoder
    goes on without them; it is there while the encoder runs.
    """

    __slots__ = ("count", "front", "memory", "parameters", "running", "seen", "states", "within")

    def __init__(self, memory: Memory, parameters: tuple[str, ...], count: int):
        self.memory = memory
        self.parameters = parameters
        self.count = count
        self.within = self.seen = self.running = False
        self.states: Tensor | None = None
        self.front: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryTap:
        copy = memo.get(id(self))
        if copy is None:
            copy = memo[id(self)] = MemoryTap(*self._settings())
        return copy

    def __reduce__(self) -> tuple[type[MemoryTap], tuple[Any, ...]]:
        return MemoryTap, self._settings()

    def _settings(self) -> tuple[Any, ...]:
        return self.memory, self.parameters, self.count


def memory_tap(model: nn.Module, memory: Memory, count: int) -> MemoryTap:
    """A tap for an encoder with a prompt of ``count`` vectors."""
    reader = model.get_submodule(memory.reader)
    return MemoryTap(memory, tuple(inspect.signature(reader.forward).parameters), count)


def entered(tap: MemoryTap) -> None:
    """The module around encoder and decoder begins."""
    tap.within, tap.states = True, None


def begun(tap: MemoryTap) -> None:
    """The encoder begins; recomputed layers run when it does not."""
    tap.running, tap.front = tap.memory.apart, None


def kept(tap: MemoryTap, hidden: Tensor) -> None:
    """Keep the states of the prompt, which are dropped from ``hidden`` [batch, places, features]."""
    if tap.running:
        tap.front = hidden[:, : tap.count]


def returned(tap: MemoryTap, output: Any) -> Any:
    """What the encoder returns, with the states of its prompt and its tokens."""
    index = tap.memory.index
    front, tap.running, tap.front = tap.front, False, None
    if front is not None:
        states = output if index is None else output[index]
        whole = torch.cat((front, states), 1)
        output = whole if index is None else kernels.with_first(output, index, whole)
    if tap.within:
        tap.states = output if index is None else output[index]
    return output


def handed(tap: MemoryTap, output: Any) -> Any:
    """The result of the module around, with the encoder's states of the tokens given.

    Where the encoder ran before, and the caller gave its states, they are handed back as they are.
    """
    states, tap.within, tap.states = tap.states, False, None
    if states is None:
        return output
    tokens = states[:, tap.count :]
    if isinstance(output, dict):
        items = cast("dict[str, Any]", output)
        for key, value in list(items.items()):
            if value is states:
                items[key] = tokens
        return items
    if type(output) is tuple:
        return tuple(tokens if v is states else v for v in cast("tuple[Any, ...]", output))
    return output


def attended(tap: MemoryTap, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The decoder's arguments with a mask for all states that it is given.

    Raises:
        SurgeryError: S530 if the mask fits neither the tokens nor all states.

    """
    names, memory = tap.parameters[: len(args)], tap.memory
    given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
    states = given.get(memory.states)
    mask = None if memory.mask is None else given.get(memory.mask)
    tap.seen = tap.states is not None
    if not isinstance(states, Tensor) or not isinstance(mask, Tensor):
        return args, kwargs
    more = states.shape[1] - mask.shape[-1]
    if more not in (0, tap.count):
        raise error(
            "S530",
            f"a mask over {mask.shape[-1]} tokens does not fit {states.shape[1]} states of an "
            f"encoder with a prompt of {tap.count}",
            help="give the mask of the encoder's tokens, or one for all its states",
        )
    if more == 0:
        return args, kwargs
    tap.seen = True
    given[str(memory.mask)] = functional.pad(mask, (more, 0), value=_seen(mask, str(memory.mask)))
    rest = {k: v for k, v in given.items() if k not in names}
    return (*(given[name] for name in names), *args[len(names) :]), rest


def _seen(mask: Tensor, name: str) -> int:
    """What says in ``mask`` that a place is seen: one that is added, or marks padding, has zeros."""
    added = mask.dim() > 2 and mask.is_floating_point()
    return 0 if added or "key_padding" in name else 1


def told(tap: MemoryTap, output: Any) -> Any:
    """The decoder's result with its attentions to the states of the tokens given."""
    if not tap.seen:
        return output
    if isinstance(output, dict):
        items = cast("dict[str, Any]", output)
        for key, value in list(items.items()):
            if "cross" in key and isinstance(value, tuple):
                items[key] = _tokens(tap, cast("tuple[Any, ...]", value))
        return items
    if type(output) is not tuple:
        return output
    parts = cast("tuple[Any, ...]", output)
    # Without names: attentions across come last, behind those to the sequence itself.
    attending = [i for i, part in enumerate(parts) if isinstance(part, tuple) and _attends(part)]
    last = attending[-1] if len(attending) > 1 else None
    return tuple(_tokens(tap, part) if i == last else part for i, part in enumerate(parts))


def _attends(values: Any) -> bool:
    return any(isinstance(v, Tensor) and v.dim() == 4 for v in values)


def _tokens(tap: MemoryTap, attentions: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v[..., tap.count :] if isinstance(v, Tensor) else v for v in attentions)
