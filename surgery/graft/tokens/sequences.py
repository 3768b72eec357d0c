"""Vectors in front of an embedded token sequence, as functions that generated forwards call.

Three modules take part. The *reader* of the ids makes room for the vectors in what it is given
(:func:`extended`), the *embedding* puts them there (:func:`filled`), and behind the last layer
they are dropped (:func:`trimmed`), so that final norms, poolers, heads and losses see exactly the
tokens given; the reader drops them from the states and attentions that it hands out beside
(:func:`restored`). How many joined this call, they find in the slots of :class:`TokenSlots`. The
states of an encoder stay whole for its decoder (``graft/tokens/memory.py``).

A decoding step with a filled cache joins nothing: its mask and its positions are told of the
vectors in the cache.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.site import Tokens
from surgery.graft.channel import Slot, peek, put
from surgery.graft.graphs import calls
from surgery.graft.passing import fetch, look
from surgery.graft.tokens.arguments import ReaderCall
from surgery.graft.tokens.memory import MemorySlots, kept, returned
from surgery.graft.tokens.outputs import Trim
from surgery.huggingface.caches import make_room
from surgery.huggingface.vocabulary import special_tokens
from surgery.language.diagnostics import error

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TokenSlots:
    """What the modules of one stack of ``tokens`` share.

    ``parameters`` are the names of the reader's ``forward``, in order; ``placeholder`` is the id
    that stands for a vector until its embedding is filled in. While the reader runs, ``prompt``
    waits for the embedding, ``trim`` says what to drop, and ``places`` are the vectors that take
    places, in a call that begins a sequence. What is ``instead`` takes the place of any prompt.
    ``memory`` is there where a decoder sees the prompt.
    """

    tokens: Tokens
    parameters: tuple[str, ...]
    placeholder: int
    memory: MemorySlots | None = None
    prompt: Slot = field(default_factory=lambda: Slot("a prompt", again=True))
    trim: Slot = field(default_factory=lambda: Slot("the number of tokens", again=True))
    places: Slot = field(default_factory=lambda: Slot("the vectors of a prompt", again=True))
    instead: Slot = field(default_factory=lambda: Slot("a prompt"))

    @property
    def open(self) -> tuple[Slot, ...]:
        """The slots that are open while the reader runs."""
        within = (self.prompt, self.trim, self.places)
        return within if self.memory is None else (*within, self.memory.front)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReaderCall:
        """A call of the reader; nothing has joined it yet."""
        put(self.prompt, None)
        put(self.trim, None)
        return ReaderCall(self.tokens, self.parameters, args, kwargs)


def token_slots(model: nn.Module, tokens: Tokens, memory: MemorySlots | None = None) -> TokenSlots:
    """The slots for the stack of ``tokens`` in ``model``, whose decoder sees by ``memory``."""
    reader = model.get_submodule(tokens.reader)
    parameters = tuple(inspect.signature(reader.forward).parameters)
    return TokenSlots(tokens, parameters, unused_id(model, tokens), memory)


def unused_id(model: nn.Module, tokens: Tokens) -> int:
    """The least id that is not padding and has no part of its own, as an end of text has."""
    table: Any = model.get_submodule(tokens.embedding)
    special: set[Any] = {tokens.padding, getattr(table, "padding_idx", None)}
    special |= special_tokens(model) | special_tokens(model.get_submodule(tokens.reader))
    return next(i for i in range(table.weight.shape[0]) if i not in special)


def can_shift(tokens: Tokens) -> bool:
    """Whether positions can be given to the reader of ``tokens``."""
    return tokens.positions is not None


def extended(
    slots: TokenSlots, prompt: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """The reader's arguments with room for ``prompt`` in front of the tokens.

    Args:
        slots: those of the stack, where :func:`filled` finds the prompt.
        prompt: [n, features], or [rows, n, features] where rows divide the batch: each row serves
            as many neighbours (the beams of one sequence).
        args: of the reader's call, as given.
        kwargs: of the reader's call, as given.

    Raises:
        SurgeryError: S530 if the call cannot be extended: a mask that is not [batch, length],
            positions of another length, a cache that does not hold the prompt.

    """
    call = slots.call(args, kwargs)
    other = peek(slots.instead)
    prompt = prompt if other is None else other
    n = prompt.shape[-2]
    if call.batch == 0 or n == 0:
        return args, kwargs
    if call.past:
        call.follow(n)
        put(slots.trim, Trim(0, n, call.batch, call.length))
        return call.arguments()
    cache = call.of(call.tokens.cache)
    if cache is not None:
        make_room(cache, n)
    put(slots.prompt, call.join(_rows(prompt, call.batch), slots.placeholder))
    streams = bool(slots.tokens.streams)
    put(slots.trim, Trim(n, n, call.batch, n + call.length, streams))
    return call.arguments()


def accepted(
    slots: TokenSlots, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What the reader makes of its arguments.

    Raises:
        SurgeryError: S530 if it says that it takes no sequences that are longer by the prompt.

    """
    try:
        return calls.call_base(module, args, kwargs)
    except ValueError as problem:
        trim = peek(slots.trim)
        if trim is None or not trim.joined or str(trim.total) not in str(problem):
            raise
        raise error(
            "S530",
            f"the model refuses {trim.total} places, {trim.joined} of them of the prompt: {problem}",
            help="pad the tokens, or take a prompt of another length",
        ) from problem


def _rows(prompt: Tensor, batch: int) -> Tensor:
    """``prompt`` for each sequence of the batch: [batch, n, features]."""
    if prompt.dim() == 2:
        return prompt.unsqueeze(0).expand(batch, -1, -1)
    rows = prompt.shape[0]
    if rows == batch:
        return prompt
    if batch % rows:
        raise error("S530", f"{rows} prompts cannot be shared out to {batch} sequences")
    return prompt.repeat_interleave(batch // rows, 0)


def filled(slots: TokenSlots, output: Tensor) -> Tensor:
    """The embedding's result [batch, n + length, features] with the prompt in its first places.

    ``output`` is [n + length, batch, features] in stacks that have the length first.

    Only the first lookup of a call is filled: some models look up token types in the same table.
    """
    prompt = fetch(slots.prompt, output)
    if prompt is None:
        return output
    n = prompt.shape[1]
    if slots.tokens.length_first:
        return torch.cat((prompt.transpose(0, 1).to(output), output[n:]), 0)
    return torch.cat((prompt.to(output), output[:, n:]), 1)


def trimmed(slots: TokenSlots, hidden: Tensor) -> Tensor:
    """Hidden states [batch, n + length, features], as they leave the last layer, without n."""
    trim: Trim | None = look(slots.trim, hidden)
    if trim is None:
        return hidden
    if slots.memory is not None and trim.joined:
        kept(slots.memory, hidden)
    return trim.states(hidden)


def restored(slots: TokenSlots, output: Any) -> Any:
    """The reader's result with states and attentions as long as the tokens given.

    Where the states leave the stack with this result, they are trimmed here, unless a decoder
    attends to all of them.
    """
    trim: Trim | None = peek(slots.trim)
    if trim is None:
        return output
    exit = slots.tokens.exit
    if exit is None:
        return trim.attended(output)
    for index, _ in slots.tokens.streams:
        output = trim.one(output, index)
    if slots.memory is not None:
        return returned(slots.memory, trim.output(output))
    if exit.path == slots.tokens.reader:
        output = trim.one(output, exit.index)
    return trim.output(output)


def shifted(
    slots: TokenSlots, shift: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """The reader's arguments with every position ``shift`` further on, and no token more.

    Positions that are not given are counted as the reader would count them.

    Raises:
        SurgeryError: S530 if the reader takes no positions; :func:`can_shift` tells.

    """
    call = ReaderCall(slots.tokens, slots.parameters, args, kwargs)
    if call.batch:
        call.shift(shift)
    return call.arguments()


def noticed(
    slots: TokenSlots, vectors: tuple[Tensor, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """The reader's arguments as they are; :func:`placed` finds ``vectors`` if a sequence starts."""
    call = slots.call(args, kwargs)
    put(slots.places, None if call.past else vectors)
    return args, kwargs


def placed(slots: TokenSlots, ids: Tensor, marks: tuple[int, ...], embedded: Tensor) -> Tensor:
    """``embedded`` with the vectors of a prompt where its token is.

    Args:
        slots: those of the stack; a step of decoding holds no places.
        ids: [batch, length].
        marks: the id that marks the places of each prompt.
        embedded: [batch, length, features], what the embedding found for ``ids``.

    Raises:
        SurgeryError: S531 if a row has another number of places than the prompt has vectors.

    """
    vectors: tuple[Tensor, ...] | None = look(slots.places, embedded)
    for token, prompt in zip(marks, vectors or (), strict=False):
        embedded = _placed(ids, token, prompt, embedded)
    return embedded


def _placed(ids: Tensor, token: int, prompt: Tensor, embedded: Tensor) -> Tensor:
    """``embedded`` with row i of ``prompt`` where ``token`` occurs for the i-th time in its row."""
    n = prompt.shape[0]
    marks = ids == token
    counts = marks.sum(1)
    if torch.compiler.is_compiling():
        check: Any = torch.ops.aten._assert_async.msg
        check((counts == n).all(), f"a prompt of {n} needs token {token} as often in each sequence")
    elif bool((counts != n).any()):
        found = " or ".join(str(c) for c in range(ids.shape[1] + 1) if bool((counts == c).any()))
        raise error(
            "S531",
            f"the prompt has {n} vectors, but token {token} occurs {found} times in a sequence",
            help="every sequence needs as many of these tokens as the prompt has vectors",
        )
    rows = (marks.long().cumsum(1) - 1).clamp(0, n - 1)
    return torch.where(marks.unsqueeze(-1), prompt.to(embedded)[rows], embedded)
