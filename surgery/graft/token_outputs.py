"""What a reader hands out beside its last states, without the places of a prompt."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from surgery.graft import kernels


class Trim:
    """Drops the places of a prompt from the results of one call.

    ``joined`` vectors joined the ``total`` places of each of ``batch`` sequences in this call;
    ``held`` stand in front of all keys, those of a cache included.
    """

    __slots__ = ("batch", "held", "joined", "total")

    def __init__(self, joined: int, held: int, batch: int, total: int):
        self.joined = joined
        self.held = held
        self.batch = batch
        self.total = total

    def output(self, output: Any) -> Any:
        """A result with its tuples of states, attentions and router scores trimmed."""
        if isinstance(output, dict):
            items = cast("dict[str, Any]", output)
            for key, value in list(items.items()):
                if isinstance(value, tuple | list):
                    items[key] = self._several(cast("tuple[Any, ...]", value), "cross" in key)
            return items
        if type(output) is not tuple:
            return output
        parts: list[Any] = []
        attentions = 0
        for part in cast("tuple[Any, ...]", output):
            if isinstance(part, tuple):
                several = cast("tuple[Any, ...]", part)
                # Without names: those to the sequence itself come before those across.
                part = self._several(several, attentions > 0)
                attentions += any(isinstance(t, Tensor) and t.dim() == 4 for t in several)
            parts.append(part)
        return tuple(parts)

    def _several(self, values: tuple[Any, ...], cross: bool) -> tuple[Any, ...]:
        return tuple(self._one(v, cross) if isinstance(v, Tensor) else v for v in values)

    def _one(self, value: Tensor, cross: bool) -> Tensor:
        if value.dim() == 4:
            queries = value[:, :, self.joined :] if value.shape[2] == self.total else value
            return queries if cross else queries[..., self.held :]
        if not self.joined:
            return value
        if value.dim() == 3 and value.shape[1] == self.total:
            return value[:, self.joined :]
        if value.dim() == 2 and value.shape[0] == self.batch * self.total:
            rows = value.view(self.batch, self.total, -1)[:, self.joined :]
            return rows.reshape(-1, value.shape[1])
        return value

    def one(self, output: Any, index: int | str) -> Any:
        """``output`` with the states at ``index`` trimmed; of a mapping, the index-th value."""
        if isinstance(output, dict):
            items = cast("dict[str, Any]", output)
            key = list(items)[index] if isinstance(index, int) else index
            items[key] = self.states(items[key])
            return items
        return kernels.with_first(output, index, self.states(output[index]))

    def states(self, value: Tensor) -> Tensor:
        """Hidden states [batch, total, features] of the tokens given."""
        return value[:, self.joined :] if self.joined else value
