"""The penalties of methods, which join the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from surgery.graft.instances import Instance, instances
from surgery.graft.state import Surgery, surgery_of
from surgery.planning.stated import stated_penalty
from surgery.rules.expression import Expression
from surgery.rules.trained import PenaltyTerm


def penalty_of(model: nn.Module) -> Tensor:
    """The sum of all penalties, one number with a gradient; 0 where there are none."""
    surgery = surgery_of(model)
    like = next((p for p in model.parameters() if p.requires_grad), None)
    total = torch.zeros((), device=like.device if like is not None else None)
    if surgery is None:
        return total
    for instance, value in terms(model, surgery):
        found = instance.value(value)
        total = total + (found.sum() if isinstance(found, Tensor) else found)
    return total


def terms(model: nn.Module, surgery: Surgery) -> Iterator[tuple[Instance, Expression]]:
    """Each penalty of each method at each site."""
    for instance in instances(model, surgery):
        for item in instance.said:
            if isinstance(item, PenaltyTerm):
                yield instance, item.value
        yield from ((instance, value) for value in _stated(surgery, instance))


def _stated(surgery: Surgery, instance: Instance) -> Iterator[Expression]:
    """What `penalty` statements say of a method at a site."""
    for applied in surgery.applied:
        for planned in applied.plan.penalties:
            if planned.key == instance.edit.key:
                spec = applied.plan.spec
                yield stated_penalty(spec, planned.statement, instance.edit).value
