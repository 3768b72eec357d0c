"""What a reader hands out beside its last states, without the places of a prompt."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from surgery.graft.graphs import calls
from surgery.huggingface.outputs import each, each_of_layers


class Trim:
    """Drops the places of a prompt from the results of one call.

    ``joined`` vectors joined the ``total`` places of each of ``batch`` sequences in this call;
    ``held`` stand in front of all keys, those of a cache included. Where layers run several
    ``streams``, one sequence behind the other, each of them has these places.
    """

    __slots__ = ("batch", "held", "joined", "streams", "total")

    def __init__(self, joined: int, held: int, batch: int, total: int, streams: bool = False):
        self.joined = joined
        self.streams = streams
        self.held = held
        self.batch = batch
        self.total = total

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trim):
            return False
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def output(self, output: Any) -> Any:
        """A result with its tuples of states, attentions and router scores trimmed."""
        return each_of_layers(output, self._attends, self._several)

    def attended(self, output: Any) -> Any:
        """A result without states of tokens, with the attentions to them trimmed."""
        return each(output, lambda _, value: self._columns(value))

    def _columns(self, value: Any) -> Any:
        """Of several attentions [batch, heads, queries, keys] those whose keys are the tokens."""
        if not isinstance(value, tuple):
            return value
        return tuple(
            v[..., self.joined :]
            if isinstance(v, Tensor) and v.dim() == 4 and v.shape[3] == self.total != v.shape[2]
            else v
            for v in cast("tuple[Any, ...]", value)
        )

    def _several(self, values: tuple[Any, ...], attends: bool, cross: bool) -> tuple[Any, ...]:
        trim = self._attention if attends else self._rows
        found: list[Any] = []
        for value in values:
            if isinstance(value, tuple):
                value = self._several(cast("tuple[Any, ...]", value), attends, cross)
            found.append(trim(value, cross) if isinstance(value, Tensor) else value)
        return tuple(found)

    def _attends(self, value: Any) -> bool:
        """Whether a value is [batch, heads, queries, keys]; some models stack states in front.

        Those of several streams are [batch, streams, heads, queries, keys].
        """
        if not isinstance(value, Tensor) or value.dim() != 4 + (value.dim() == 5 and self.streams):
            return False
        return value.shape[0] == self.batch and value.shape[-2] == self.total

    def _attention(self, value: Tensor, cross: bool) -> Tensor:
        """Attentions [batch, heads, queries, keys]; what a mixer without keys gives are states.

        Those in windows or blocks have fewer keys, and other axes, and stay as they are.
        """
        if value.dim() < 4:
            return self._rows(value, cross)
        if value.dim() > 4 and not self.streams:
            return value
        queries = self._without(value, -2)
        if cross or (self.joined and value.shape[-1] < self.total):
            return queries
        if self.joined and self.streams and value.shape[-1] > self.total:
            return self._without(queries, -1)
        return queries[..., self.held :]

    def _rows(self, value: Tensor, _: bool) -> Tensor:
        """States [..., total, features], or scores [batch · total, experts].

        States may stand in several rows for each token, [batch, total, rows, features].
        """
        if not self.joined:
            return value
        if value.dim() >= 3:
            several = value.dim() == 4 and value.shape[2] != self.total
            return self._without(value, 1 if several and value.shape[1] == self.total else -2)
        if value.dim() == 2 and value.shape[0] == self.batch * self.total:
            rows = value.view(self.batch, self.total, -1)[:, self.joined :]
            return rows.reshape(-1, value.shape[1])
        return value

    def one(self, output: Any, index: int | str | None) -> Any:
        """``output`` with the states at ``index`` trimmed; of a mapping, the index-th value."""
        if index is None:
            return self.states(output)
        if isinstance(output, dict):
            items = cast("dict[str, Any]", output)
            key = list(items)[index] if isinstance(index, int) else index
            items[key] = self.states(items[key])
            return items
        return calls.with_first(output, index, self.states(output[index]))

    def states(self, value: Tensor) -> Tensor:
        """Hidden states [batch, total, features] of the tokens given.

        There may be more where the model pads its sequences, and fewer where some were picked.
        """
        if self.joined and not self.streams and value.shape[1] > self.total:
            return value[:, self.joined :]
        return self._without(value, 1)

    def _without(self, value: Tensor, dim: int) -> Tensor:
        """``value`` without the places of the prompt in each of its streams along ``dim``."""
        size = value.shape[dim]
        if not self.joined or (size != self.total and not self.streams):
            return value
        axis, kept = dim % value.dim(), self.total - self.joined
        if size == self.total:
            return value.narrow(axis, self.joined, kept)
        if size % self.total:
            return value
        sizes = (*value.shape[:axis], -1, self.total, *value.shape[axis + 1 :])
        return value.reshape(sizes).narrow(axis + 1, self.joined, kept).flatten(axis, axis + 1)
