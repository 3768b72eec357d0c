"""What follows a step of the optimizer: states, masks and draws take their next values.

All of it is computed from what the model holds: its states, its parameters and their gradients, and a
clock with the number of steps and a seed. So a model that is saved, loaded and trained on has the
same bits as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgery.graft.graphs.forms import function
from surgery.graft.initialise import draw
from surgery.graft.instances import Instance, by_statement, instances
from surgery.graft.seeds import draw_key
from surgery.graft.state import required
from surgery.language.diagnostics import error
from surgery.rules.expression import SITES, Expression, walk
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.trained import AfterStep, Update


@torch.no_grad()
def step_specs(model: nn.Module) -> None:
    """Do what the rules of ``model`` say of a step, once; nothing where they say nothing.

    Raises:
        SurgeryError: S512 if nothing was applied, S571 if gradients are gone that a rule reads.

    """
    surgery = required(model)
    found = [i for i in instances(model, surgery) if i.clock is not None]
    groups = by_statement(found)
    gradients = [_gradients(group) for group in groups]
    clocks = {id(clock): clock for i in found if (clock := i.clock) is not None}
    for clock in clocks.values():
        clock[0] += 1
    for group, known in zip(groups, gradients, strict=True):
        for number, item in enumerate(group[0].said):
            if isinstance(item, AfterStep):
                _after(group, number, known)
    for instance in found:
        _redraw(instance)


def _gradients(group: Sequence[Instance]) -> list[dict[Expression, Tensor]]:
    """What `grad(A)` is at each site."""
    found: list[dict[Expression, Tensor]] = []
    wanted, there = "", False
    for instance in group:
        known: dict[Expression, Tensor] = {}
        for e in _expressions(instance):
            primitive = PRIMITIVES.get(e.op)
            if primitive is None or not primitive.stepping or e in known:
                continue
            name = e.arguments[0].name
            gradient = instance.held(name).grad
            wanted, there = wanted or name, there or gradient is not None
            # A parameter that had no part in this step, as of an expert without tokens.
            own = torch.zeros_like(instance.held(name)) if gradient is None else gradient
            known[e] = own if instance.expert is None else own[instance.expert]
        found.append(known)
    if wanted and not there:
        raise error(
            "S571",
            f"`surgery.step` reads the gradient of `{wanted}`, and there is none",
            help="call it between `optimizer.step()` and `optimizer.zero_grad()`",
        )
    return found


def _expressions(instance: Instance) -> list[Expression]:
    updates = [u for item in instance.said if isinstance(item, AfterStep) for u in item.updates]
    return [e for update in updates for e in walk(update.value)]


def _after(
    group: Sequence[Instance], number: int, gradients: Sequence[Mapping[Expression, Tensor]]
) -> None:
    """Carry out one `after step { … }` at all sites of a statement, one line after another."""
    active: list[tuple[Instance, Mapping[Expression, Tensor], tuple[Update, ...]]] = []
    for instance, known in zip(group, gradients, strict=True):
        item = instance.said[number]
        assert isinstance(item, AfterStep)
        if item.where is None or item.where.holds(instance.sizes):
            active.append((instance, known, item.updates))
    for line in range(len(active[0][2]) if active else 0):
        here = [(instance, known, updates[line].value) for instance, known, updates in active]
        values = _over_sites(here)
        for (instance, _, updates), value in zip(active, values, strict=True):
            _write(instance, updates[line].target, value)
    for instance, _, _ in active:
        instance.values.clear()


Here = tuple[Instance, Mapping[Expression, Tensor], Expression]


def _over_sites(here: Sequence[Here]) -> list[Any]:
    """The value of an expression at each site, where parts of it may be of all sites together."""
    known: list[dict[Expression, Any]] = [dict(gradients) for _, gradients, _ in here]
    joined = [[e for e in walk(value) if _is_joined(e)] for _, _, value in here]
    for parts in zip(*joined, strict=True):
        values = [
            instance.value(part.arguments[0], own)
            for (instance, _, _), part, own in zip(here, parts, known, strict=True)
        ]
        rest = [here[0][0].value(a, known[0]) for a in parts[0].arguments[1:]]
        joined_here = function(PRIMITIVES[parts[0].op].over_sites)(values, *rest)
        for own, part, value in zip(known, parts, joined_here, strict=True):
            own[part] = value
    return [
        instance.value(value, own) for (instance, _, value), own in zip(here, known, strict=True)
    ]


def _is_joined(e: Expression) -> bool:
    return dict(e.attributes).get("axis") == SITES


def _write(instance: Instance, target: str, value: Any) -> None:
    if target.startswith("let "):
        instance.values[target] = torch.as_tensor(value).clone()
        return
    tensor = instance.tensor(target)
    if isinstance(value, Tensor):
        tensor.copy_(value.expand(tensor.shape))
    else:
        tensor.fill_(value)


def _redraw(instance: Instance) -> None:
    """Draw what the next step is trained with; each number depends on the seed and the step alone."""
    clock = instance.clock
    assert clock is not None
    edit, step, seed = instance.edit, int(clock[0]), int(clock[1])
    planned = {t.name.removeprefix(edit.prefix): t for t in edit.tensors}
    for declaration in instance.declared:
        if not declaration.drawn:
            continue
        key = draw_key(seed, edit, planned[declaration.name], step)
        if instance.expert is not None:
            key += f"[{instance.expert}]"
        shape = declaration.shape_at(edit.sizes)
        fresh = draw(declaration.init, shape, edit.sizes, key, False)
        instance.tensor(declaration.name).copy_(fresh)
