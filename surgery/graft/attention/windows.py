"""Cores whose queries see windows of keys: new keys, which every query sees, join their softmax.

What is done to scores of windows before, and to weights after, is left as it is. Scores of new keys
are computed of the queries before these are cut into blocks, and what the new values add is added
to the context that blocks are put together to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy.attention_core import AttentionCore, Windows
from surgery.anatomy.roles.trail import FunctionCall, among
from surgery.anatomy.roles.trails import ALIKE, CUTS, LINEAR, SCORED
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.steps import Step


class WindowedCore:
    """One core on its way: cuts of queries, then weights, then the context."""

    def __init__(self, core: AttentionCore, change: CoreFunctions):
        assert core.windows is not None
        self.core, self.change = core, change
        self.windows: Windows = core.windows
        self.cuts: list[tuple[Tensor, str, Tensor]] = []
        self.queries: Tensor | None = None
        self.new: Tensor | None = None
        self.weights: list[Tensor] = []
        self.parts: list[tuple[Tensor, int]] = []

    def seen(self, call: FunctionCall[Tensor], result: Any) -> Any:
        """Take note of a function: the result that it is to have, and whether the core is done."""
        if not isinstance(result, Tensor) or not call.given:
            return result
        if self.new is None:
            self.before(call.kind, call.given, result)
            return result
        return self.after(call.kind, call, result)

    @property
    def is_done(self) -> bool:
        return self.new is not None and not self.weights

    def before(self, name: str, given: Sequence[Tensor], result: Tensor) -> None:
        """Remember how operands are cut; the first product of queries tells which these are."""
        if self.queries is None and name in CUTS:
            self.cuts.append((result, name, given[0]))
        if self.queries is None and name in SCORED:
            found = (self.uncut(operand) for operand in given)
            self.queries = next((q for q in found if q is not None), None)

    def uncut(self, operand: Tensor) -> Tensor | None:
        """What ``operand`` was cut of, if it was cut as queries are, and has their axes."""
        for name in self.windows.cuts:
            made = [source for cut, how, source in self.cuts if cut is operand and how == name]
            if not made:
                return None
            operand = made[-1]
        core = self.core
        if operand.dim() != len(self.windows.queries):
            return None
        sizes = operand.permute(self.windows.queries).shape
        fits = sizes[core.heads_at] == core.query_heads and sizes[-1] == core.keys
        return operand if fits else None

    def soften(self, softmax: Step, scores: Tensor) -> Tensor | None:
        """``softmax`` over scores of new and of own keys: the weights of own ones.

        None if the queries have not been seen, or have other axes than scores.
        """
        if self.queries is None:
            return None
        queries = self.queries.permute(self.windows.queries)
        if queries.shape[:-1] != scores.shape[:-1]:
            return None
        moved = self.by_heads(queries)
        new = self.made(self.change.key, moved, self.core.keys)
        fresh = self.by_scores(moved @ new.mT, queries).to(scores.dtype)
        both = softmax.again(torch.cat([fresh, scores], dim=-1))
        self.new, own = both[..., : self.change.revealed], both[..., self.change.revealed :]
        self.weights, self.cuts = [own], []
        return own

    def after(self, name: str, call: FunctionCall[Tensor], result: Tensor) -> Tensor:
        """Follow weights to their products with values, and these to the context."""
        taken = next((t for t in call.given if among(t, self.weights)), None)
        if taken is not None and name in SCORED:
            return self.put(result, 0)
        if taken is not None and name in LINEAR:
            first = taken is self.weights[-1] and result.shape == taken.shape
            if name in ALIKE and first and self.new is not None:
                self.new = Step.of(call, taken, result.shape).alike(self.new, [])
            self.weights.append(result)
        for part, count in self.parts:
            if part is call.given[0] and name == self.windows.parts[count]:
                return self.put(result, count + 1)
        return result

    def put(self, part: Tensor, count: int) -> Tensor:
        """Note a part of the context that came by ``count`` functions; the last is the context."""
        if count < len(self.windows.parts):
            self.parts.append((part, count))
            return part
        assert self.new is not None
        weights = self.by_heads(self.new)
        new = self.made(self.change.value, weights, self.core.values)
        if part.dim() != len(self.windows.context):
            return part
        given = part.permute(self.windows.context)
        if given.shape != (*self.new.shape[:-1], self.core.values):
            return part
        self.weights, self.parts = [], []
        more = self.by_scores(weights.to(new.dtype) @ new, self.new)
        order = self.windows.context
        back = tuple(order.index(axis) for axis in range(len(order)))
        return part + more.to(part.dtype).permute(back)

    def made(self, function: Any, like: Tensor, features: int) -> Tensor:
        """New keys or values, [batch, heads, new, features]."""
        none = like.new_empty(like.shape[0], self.core.heads, 0, features)
        return function(none).to(like.dtype)

    def by_heads(self, value: Tensor) -> Tensor:
        """Axes of scores, and one more, as batch, heads, places and that one."""
        return value.movedim(self.core.heads_at, 1).flatten(2, -2)

    def by_scores(self, value: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`by_heads`, with the axes of ``like`` but for the last."""
        shape = like.movedim(self.core.heads_at, 1).shape[:-1]
        return value.reshape(*shape, value.shape[-1]).movedim(1, self.core.heads_at)
