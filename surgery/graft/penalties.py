"""The penalties of methods, which join the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from surgery.graft.instances import Instance, instances
from surgery.graft.state import Surgery, surgery_of
from surgery.language import syntax
from surgery.planning.targets import local_name
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, param
from surgery.rules.trained import PenaltyTerm
from surgery.rules.training import ParamNames, penalty_term
from surgery.rules.values import Value


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
        spec = applied.plan.spec
        for planned in applied.plan.penalties:
            if planned.key != instance.edit.key:
                continue
            statement = spec.statements[planned.statement]
            assert isinstance(statement, syntax.Penalty)
            names = ParamNames(spec.constants, _params(instance), _numbers(instance))
            yield penalty_term(statement.value, statement.span, names).value


def _params(instance: Instance) -> dict[str, Expression]:
    """The params of a method by the names that its rule gives them."""
    own = {t.name.removeprefix(instance.edit.prefix): t for t in instance.edit.tensors}
    return {
        local_name(instance.edit, own[d.name]): param(d.name, d.shape, d.span)
        for d in instance.declared
    }


def _numbers(instance: Instance) -> dict[str, Value]:
    """The dims of the site, and the numbers that the method was given."""
    given = instance.edit.wrapped.closure.arguments
    known: dict[str, Value] = {name: Dim.named(name) for name in instance.edit.sizes}
    return {**known, **{n: v for n, v in given.items() if isinstance(v, Dim)}}
