"""What scores and weights go through, done to those of new keys as well.

The kinds of steps are those of :mod:`surgery.anatomy.roles.trails`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.anatomy.roles.operators import ATTENTIONS, WHOLE_ATTENTIONS, kind
from surgery.anatomy.roles.trail import FunctionCall, among
from surgery.anatomy.roles.trails import (
    ALIKE,
    MOVES,
    SCALED,
    SCORED,
    VIEWS,
)
from surgery.graft.attention.calls import called

KINDS = {
    name: kind(name)
    for space in (torch.Tensor, torch, functional)
    for name in (*dir(space), "flex_attention", "attention_interface")
} | {name: kind(name) for name in (f"special_{name}" for name in dir(torch.special))}
"""The kind of each torch function by its name."""

FIRST = {name for name, of in KINDS.items() if of in SCORED | ATTENTIONS | WHOLE_ATTENTIONS}
"""The names of functions that a core can begin with."""

_HOLE = object()


@dataclass(frozen=True)
class Step:
    """One function of scores or weights; ``args`` and ``kwargs`` have a hole where these go.

    ``shape`` is that of its result.
    """

    kind: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, call: FunctionCall[Tensor], before: Tensor, shape: Sequence[int] = ()) -> Step:
        """The call, with a hole in place of ``before``."""
        held = tuple(_replaced(arg, before, _HOLE) for arg in call.args)
        # What is written to a tensor of the caller's own is so once, by the call itself.
        given = {key: arg for key, arg in call.kwargs.items() if key != "out"}
        named = {key: _replaced(arg, before, _HOLE) for key, arg in given.items()}
        return cls(call.kind, call.function, held, named, tuple(shape))

    def again(self, tensor: Tensor) -> Tensor:
        """The step, with ``tensor`` in the hole."""
        args = tuple(_replaced(arg, _HOLE, tensor) for arg in self.args)
        kwargs = {name: _replaced(arg, _HOLE, tensor) for name, arg in self.kwargs.items()}
        return called(self.func, args, kwargs)

    def alike(self, new: Tensor, aside: list[Tensor]) -> Tensor:
        """What becomes of ``new``, of other keys, to which nothing is joined.

        ``aside`` are numbers that are the same for scores of every key.
        """
        others = [t for t in tensors(self.args, self.kwargs) if not among(t, aside)]
        if self.kind in SCALED:
            others = [t for t in others if t.shape[-1] != 1]
        if self.kind in ALIKE or self.kind in MOVES:
            return self.again(new)
        if self.kind in VIEWS:
            return new.reshape(*self.shape[:-1], new.shape[-1])
        if self.kind != "getitem" and not others:
            return self.again(new)
        return new.expand(*self.shape[:-1], new.shape[-1])


def tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among arguments and in lists of them, but numbers, and what is written to."""
    found: list[Tensor] = []
    for arg in (*args, *(arg for key, arg in kwargs.items() if key != "out")):
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            items = cast("list[Any]", arg)
            found.extend(item for item in items if isinstance(item, Tensor))
    return [tensor for tensor in found if tensor.dim() > 0]


def _replaced(arg: Any, old: Any, new: Any) -> Any:
    if arg is old:
        return new
    if type(arg) in (list, tuple):
        return type(arg)([new if item is old else item for item in arg])
    return arg
