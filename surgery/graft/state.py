"""What has been done to a model: kept on the model itself, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery.planning.plan import Edit, Plan
from surgery.rules.expand import Wrapped

ATTRIBUTE = "_surgery"


@dataclass
class Applied:
    """One applied spec: its plan, the edits of it that are still in the model, the seed.

    ``flags`` are the ``requires_grad`` of base parameters before, and ``values`` the base
    parameters' contents where the spec trains them.
    """

    plan: Plan
    edits: list[Edit]
    seed: int
    flags: dict[str, bool]
    values: dict[str, torch.Tensor]

    def wrapped(self, edit: Edit) -> Wrapped:
        """The method of one of its edits."""
        return edit.wrapped(self.plan.spec)


@dataclass
class Surgery:
    """All specs applied to one model, in order, and what told its base then."""

    base: str
    digests: dict[str, str]
    applied: list[Applied] = field(default_factory=list[Applied])

    def edits(self) -> Iterator[tuple[Applied, Edit]]:
        """Every edit in force, in order of application."""
        for applied in self.applied:
            for edit in applied.edits:
                yield applied, edit

    def standing(self) -> dict[str, list[Wrapped]]:
        """The methods in force by site."""
        found: dict[str, list[Wrapped]] = {}
        for applied, edit in self.edits():
            found.setdefault(edit.whole, []).append(applied.wrapped(edit))
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Surgery:
        copies = [
            Applied(
                a.plan,
                list(a.edits),
                a.seed,
                dict(a.flags),
                {n: t.clone() for n, t in a.values.items()},
            )
            for a in self.applied
        ]
        return Surgery(self.base, self.digests, copies)


def surgery_of(model: nn.Module) -> Surgery | None:
    """The record on ``model``, or None if nothing was applied to it."""
    return model.__dict__.get(ATTRIBUTE)
