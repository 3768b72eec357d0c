"""The arguments of a reader's call, by what they are for: ids, mask, positions, token types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.anatomy.site import Tokens
from surgery.huggingface import names
from surgery.huggingface.caches import UNTOLD, past_of
from surgery.language.diagnostics import SurgeryError, error


class ReaderCall:
    """One call of the reader of ``tokens``, whose arguments can be replaced by name."""

    def __init__(
        self,
        tokens: Tokens,
        parameters: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ):
        self.positional = parameters[: len(args)]
        self.rest = args[len(parameters) :]
        self.given: dict[str, Any] = {**dict(zip(self.positional, args, strict=False)), **kwargs}
        # What the reader has no parameter for it may hand on.
        if tokens.positions is None and names.POSITIONS in kwargs:
            tokens = replace(tokens, positions=names.POSITIONS)
        if tokens.cache is None and names.CACHE in kwargs:
            tokens = replace(tokens, cache=names.CACHE)
        self.tokens = tokens
        self.past = past_of(self.of(tokens.cache))
        self.ids: Tensor | None = self.of(tokens.ids)
        self.embeds: Tensor | None = self.of(tokens.embeds)
        sequence = self.embeds if self.ids is None else self.ids
        if sequence is not None and sequence.dim() != (3 if self.ids is None else 2):
            raise _refused(f"ids of shape {_shape(sequence)} are no batch of sequences")
        self.batch, self.length = (0, 0) if sequence is None else sequence.shape[:2]

    def of(self, name: str | None) -> Any:
        return None if name is None else self.given.get(name)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as it is now, each argument given the way it was."""
        args = (*(self.given[name] for name in self.positional), *self.rest)
        return args, {k: v for k, v in self.given.items() if k not in self.positional}

    def join(self, prompt: Tensor, placeholder: int) -> Tensor | None:
        """Make room for ``prompt`` [batch, n, features] at the start of a sequence.

        Returns the prompt where the embedding has to fill it in; given embeddings hold it already.
        """
        n = prompt.shape[1]
        self._join_mask(n)
        self._join_types(n)
        self._join_positions(n)
        self._join_causal(n)
        self._join_permuted(n)
        self._join_others(n)
        if self.embeds is not None:
            self.given[str(self.tokens.embeds)] = torch.cat(
                (prompt.to(self.embeds), self.embeds), 1
            )
            return None
        if self.ids is not None:
            front = self.ids.new_full((self.batch, n), placeholder)
            self.given[self.tokens.ids] = torch.cat((front, self.ids), 1)
        return prompt

    def follow(self, n: int) -> None:
        """Go on with a sequence whose cache starts with ``n`` vectors that the caller ignores."""
        mask, positions = self._mask(), self.of(self.tokens.positions)
        seen = (self.past or 0) + self.length
        # Mamba: the cache holds a state, and no keys that would tell how many tokens it has seen.
        recurs = self.past == UNTOLD
        if mask is not None and not (recurs and mask.shape[1] == self.length):
            if recurs or mask.shape[1] != seen - n:
                raise _refused(
                    f"a mask over {mask.shape[1]} tokens does not fit a cache of {self.past} places,"
                    f" {n} of them of the prompt, and {self.length} more",
                    "pass all tokens that are not in the cache, and one mask for all tokens",
                )
            self.given[str(self.tokens.mask)] = torch.cat(
                (mask.new_ones(mask.shape[0], n), mask), 1
            )
        if positions is not None:
            self._same_length(positions, "positions")
            if mask is None and self.length > 1 and self._starts_at(positions, self.past):
                raise _refused(
                    f"the positions count the {n} vectors of the prompt in the cache",
                    "pass all tokens that are not in the cache, counted from 0 without the prompt",
                )
            self.given[str(self.tokens.positions)] = positions + n

    def shift(self, by: int) -> None:
        """Move every position; those not given are counted as the reader does."""
        name = self.tokens.positions
        if name is None:
            raise _refused(f"`{self.tokens.reader}` takes no positions, so they cannot be moved")
        positions = self.of(name)
        self.given[name] = self._counted(by) if positions is None else positions + by

    def _counted(self, shift: int) -> Tensor:
        if self.past == UNTOLD:
            raise _refused("positions go on from a cache that does not tell its length")
        past, tokens = self.past or 0, self.tokens
        mask = self._mask() if tokens.counts == "mask" else None
        if mask is not None:
            return ((mask.cumsum(1) + shift) * mask - 1).long()[:, past:]
        first = 0
        if tokens.counts == "ids":
            padding = tokens.padding or 0
            if self.ids is not None:
                real = self.ids.ne(padding).long()
                return (real.cumsum(1) + past + shift) * real + padding
            first = padding + 1
        device = self._device()
        start = first + past + shift
        return torch.arange(start, start + self.length, device=device).unsqueeze(0)

    def _device(self) -> torch.device:
        return self.ids.device if self.ids is not None else self.of(self.tokens.embeds).device

    def _mask(self) -> Tensor | None:
        mask = self.of(self.tokens.mask)
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            form = _shape(mask) if isinstance(mask, Tensor) else type(mask).__name__
            raise _refused(
                f"a mask in the form {form} cannot be extended by a prompt",
                "give a mask of shape [batch, length], or none",
            )
        return mask

    def _join_mask(self, n: int) -> None:
        mask = self._mask()
        if mask is not None:
            self._same_length(mask, "the mask")
            self.given[str(self.tokens.mask)] = torch.cat(
                (mask.new_ones(mask.shape[0], n), mask), 1
            )

    def _join_types(self, n: int) -> None:
        types = self.of(self.tokens.types)
        if types is not None:
            self._same_length(types, "token types")
            front = types[..., :1].expand(*types.shape[:-1], n)
            self.given[str(self.tokens.types)] = torch.cat((front, types), -1)

    def _join_others(self, n: int) -> None:
        """Whatever else tells of each token: the first one's, as boxes on a page have it (LayoutLM).

        What tells of their number counts the prompt.

        Those are whole numbers, or mark padding, which a prompt is not; what comes from another sequence, as long as this one, is called so.
        """
        tokens = self.tokens
        known = {tokens.ids, tokens.embeds, tokens.mask, tokens.positions, tokens.types}
        known.add(tokens.causal)
        for name, value in self.given.items():
            if name in known or not isinstance(value, Tensor) or names.of_another_sequence(name):
                continue
            # XLM
            if name == names.LENGTHS and value.shape == (self.batch,):
                self.given[name] = value + n
            tells = value.dim() > 1 and not value.is_floating_point()
            if tells and value.shape[:2] == (self.batch, self.length):
                front = value[:, :1].expand(-1, n, *value.shape[2:])
                if names.marks_padding(name):
                    front = torch.zeros_like(front)
                self.given[name] = torch.cat((front, value), 1)

    def _join_causal(self, n: int) -> None:
        """Places in what tells of each token which it sees: all see the prompt, and it no token.

        A caller that decodes one token at a time gives none, but a prompt is several.
        """
        name = self.tokens.causal
        if name is None:
            return
        given: Tensor | None = self.given.get(name)
        if given is None:
            given = torch.zeros(self.length, self.length, device=self._device())
        hidden = given.new_ones(n + self.length, n + self.length, dtype=torch.bool).triu(1)
        whole = functional.pad(given, (n, 0, n, 0))
        hidden[n:, n:] = False
        self.given[name] = whole.masked_fill(hidden, float("-inf"))

    def _join_permuted(self, n: int) -> None:
        """Columns for the prompt in what tells of each place which tokens it must not see, or is.

        The prompt must not see what the first token must not.
        """
        # XLNet
        for name in (names.FORBIDDEN, names.TARGETS):
            value: Tensor | None = self.of(name)
            if value is None:
                continue
            self._same_length(value, name)
            if value.shape[1] == self.length and name == names.FORBIDDEN:
                value = torch.cat((value[:, :1].expand(-1, n, -1), value), 1)
            self.given[name] = functional.pad(value, (n, 0))

    def _join_positions(self, n: int) -> None:
        positions: Tensor | None = self.of(self.tokens.positions)
        if positions is None:
            return
        self._same_length(positions, "positions")
        if self._mask() is None and self._packed(positions):
            raise _refused(
                "positions that start again mark several sequences in one, which need a prompt each",
                "give each sequence a row of its own",
            )
        first = (self.tokens.padding or 0) + 1 if self.tokens.counts == "ids" else 0
        places = torch.arange(first, first + n, device=positions.device, dtype=positions.dtype)
        front = places.expand(*positions.shape[:-1], n)
        self.given[str(self.tokens.positions)] = torch.cat((front, positions + n), -1)

    def _same_length(self, given: Tensor, what: str) -> None:
        if given.shape[-1] != self.length:
            raise _refused(f"{what} of shape {_shape(given)} do not fit {self.length} tokens")

    def _packed(self, positions: Tensor) -> bool:
        if torch.compiler.is_compiling() or positions.dim() > 2:
            return False
        return bool((positions[..., 1:] < positions[..., :-1]).any())

    def _starts_at(self, positions: Tensor, place: int | None) -> bool:
        if torch.compiler.is_compiling():
            return False
        return bool((positions[..., 0] == place).all())


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _refused(message: str, help: str | None = None) -> SurgeryError:
    return error("S530", message, help=help)
