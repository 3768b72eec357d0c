"""Masks that tell tokens from padding, for what runs now and for what runs again.

Under checkpointing a module runs a second time during backward, when other forwards may have come
since: two views of a batch, or the two texts of a preference. Each forward's mask is kept with marks
of the states that were read with it, by which a second run finds it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.graft.graphs.taps import Tap
from surgery.language.diagnostics import error

KEPT = 16
"""How many forwards that recorded gradients are remembered at a time."""


class _Forward:
    """The ``mask`` of one forward, and marks of what was read with it."""

    __slots__ = ("marks", "mask", "over")

    def __init__(self, mask: Any):
        self.mask = mask
        self.marks: list[Tensor] = []
        self.over = False


class MaskTap(Tap):
    """Carries the mask of a stack to one gate; ``forwards`` are those that may run again."""

    __slots__ = ("forwards", "now", "whole")

    def __init__(self) -> None:
        super().__init__()
        self.now = _Forward(None)
        self.forwards: list[_Forward] = []
        self.whole = False

    def put(self, value: Any) -> None:
        self.value = value
        if torch.compiler.is_compiling():
            return
        # What reads the mask runs again itself: every mask is written anew before it is read.
        self.whole = _in_backward()
        if self.whole:
            return
        self.now = _Forward(value)
        self.forwards = [f for f in self.forwards if not f.over]
        if torch.is_grad_enabled():
            self.forwards = [*self.forwards, self.now][-KEPT:]

    def recall(self, states: Tensor) -> Any:
        """The mask of the forward that made ``states``.

        Raises:
            SurgeryError: S433 if it is not known which one that was.

        """
        if torch.compiler.is_compiling() or self.whole:
            return self.value
        if not _in_backward():
            if self.forwards and self.forwards[-1] is self.now:
                self.now.marks.append(_mark(states))
            return self.value
        mark = _mark(states)
        found = [f for f in self.forwards if f.marks and bool((torch.stack(f.marks) == mark).any())]
        if not found or not all(_equal(f.mask, found[0].mask) for f in found):
            raise error(
                "S433",
                "a checkpointed gate runs again, and its mask is not that of one forward: "
                + ("several fit" if found else "none does"),
                help="run backward before other forwards, or batch what is compared into one",
            )
        for forward in found:
            forward.over = True
        return found[0].mask


def recall(tap: MaskTap, states: Tensor) -> Any:
    """What a tap carries for the forward that made ``states``."""
    return tap.recall(states)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]


def _mark(states: Tensor) -> Tensor:
    """One number that tells states from others."""
    return states.detach()[..., :8].sum(dtype=torch.float64)


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    return one.shape == other.shape and torch.equal(one, other)
