"""Whether a training loop does what the rules of a model need: said at the first step that lacks it.

Torch tells of each step of each optimizer. One that has parameters of a model with needs is held
against them: its groups before the step, the penalty beside the loss, and `surgery.step` before the
next one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from surgery.graft.instances import instances
from surgery.graft.optimizing import Change, changes_of
from surgery.graft.penalties import terms
from surgery.graft.state import Surgery, roots, surgery_of
from surgery.language.diagnostics import error


@dataclass(eq=False)
class Needs:
    """What the training of a model takes, and what of it was done since the last step."""

    surgery: Surgery
    trained: frozenset[int]
    changes: dict[int, dict[str, Change]]
    penalised: bool
    stepping: bool
    penalty_seen: bool = False
    step_due: bool = False
    grouped: weakref.WeakSet[Optimizer] = field(default_factory=weakref.WeakSet[Optimizer])
    """The optimizers whose groups were looked at."""

    @property
    def any(self) -> bool:
        return bool(self.changes or self.penalised or self.stepping)


_NEEDS: weakref.WeakKeyDictionary[nn.Module, Needs] = weakref.WeakKeyDictionary()


def needs_of(model: nn.Module) -> Needs | None:
    """What the training of ``model`` takes; None if nothing is applied to it."""
    surgery = surgery_of(model)
    if surgery is None:
        return None
    known = _NEEDS.get(model)
    if known is None or known.surgery is not surgery:
        known = _NEEDS[model] = _read(model, surgery)
    return known


def _read(model: nn.Module, surgery: Surgery) -> Needs:
    trained = frozenset(id(p) for p in model.parameters() if p.requires_grad)
    changes = {key: own for key, own in changes_of(model, surgery).items() if key in trained}
    penalised = next(terms(model, surgery), None) is not None
    stepping = any(i.clock is not None for i in instances(model, surgery))
    return Needs(surgery, trained, changes, penalised, stepping)


def note_penalty(model: nn.Module) -> None:
    """The penalty of ``model`` was asked for."""
    needs = needs_of(model)
    if needs is not None:
        needs.penalty_seen = True


def note_step(model: nn.Module) -> None:
    """What follows a step was done."""
    needs = needs_of(model)
    if needs is not None:
        needs.step_due = False


def _concerned(optimizer: Optimizer) -> Iterable[Needs]:
    """The needs of each model of which ``optimizer`` trains parameters."""
    held: set[int] | None = None
    for model in roots():
        needs = needs_of(model) if "_surgery" in model.__dict__ else None
        if needs is None or not needs.any:
            continue
        if held is None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held & needs.trained:
            yield needs


def _before(optimizer: Optimizer, *_: Any) -> None:
    for needs in _concerned(optimizer):
        if optimizer not in needs.grouped:
            _check_groups(optimizer, needs)
            needs.grouped.add(optimizer)
        if needs.step_due:
            raise error(
                "S573",
                "a rule of this model says what follows each step of the optimizer, and nothing did",
                help="call `surgery.step(model)` after `optimizer.step()`, or give a Trainer "
                "`surgery.huggingface.TrainingCallback()`",
            )
        if needs.penalised and not needs.penalty_seen:
            raise error(
                "S574",
                "a rule or a spec of this model has a penalty, and it was not asked for",
                help="train with `loss + surgery.penalty(model)`, or give a Trainer "
                "`surgery.huggingface.TrainingCallback()`",
            )


def _after(optimizer: Optimizer, *_: Any) -> None:
    for needs in _concerned(optimizer):
        needs.step_due = needs.stepping
        needs.penalty_seen = False


def _check_groups(optimizer: Optimizer, needs: Needs) -> None:
    """Parameters of which different things are said must not be in one group."""
    for group in optimizer.param_groups:
        said = {
            tuple(sorted(needs.changes.get(id(p), {}).items()))
            for p in group["params"]
            if id(p) in needs.trained
        }
        wrong = [
            (option, value)
            for own in said
            for option, (sign, value) in own
            if sign == "=" and group.get(option, value) != value
        ]
        if len(said) > 1 or wrong:
            raise error(
                "S575",
                "an `optimize` of this model is not in force: the optimizer has the parameters in "
                "other groups",
                help="make it from `surgery.param_groups(model, lr = …)`",
            )


@cache
def watch() -> None:
    """From now on, hear of the steps of optimizers."""
    register_optimizer_step_pre_hook(_before)
    register_optimizer_step_post_hook(_after)
