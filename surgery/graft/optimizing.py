"""The groups of parameters that an optimizer gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from surgery.anatomy.modules import all_parameters
from surgery.graft.instances import Instance, instances
from surgery.graft.state import Surgery, surgery_of
from surgery.language.diagnostics import error
from surgery.rules.trained import Tuning

Change = tuple[str, float]
"""A sign and a number: `* 16` of what the optimizer has, or `= 0`."""


def changes_of(model: nn.Module, surgery: Surgery | None) -> dict[int, dict[str, Change]]:
    """What rules and statements say of each parameter, by its identity; the last one counts."""
    found: dict[int, dict[str, Change]] = {}
    if surgery is None:
        return found
    parameters = all_parameters(model)
    for instance in instances(model, surgery):
        for item in instance.said:
            if isinstance(item, Tuning):
                for name in item.params:
                    change = item.operator, _number(item, instance)
                    found.setdefault(id(instance.held(name)), {})[item.option] = change
    # What a spec says counts more than what its rules do.
    for applied in surgery.applied:
        for option in applied.plan.options:
            for name in option.names:
                if name in parameters:
                    own = found.setdefault(id(parameters[name]), {})
                    own[option.option] = option.operator, option.value
    return found


def _number(item: Tuning, instance: Instance) -> float:
    value = item.value.value(instance.sizes)
    if value < 0:
        raise error("S280", f"`{item.option}` is a number from 0 on, not {value}", item.span)
    return float(value)


def groups_of(model: nn.Module, given: Mapping[str, float]) -> list[dict[str, Any]]:
    """All parameters that train, in groups with one set of options each.

    Raises:
        SurgeryError: S570 if an option is to be changed that is not ``given``.

    """
    changes = changes_of(model, surgery_of(model))
    groups: dict[tuple[tuple[str, float], ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        options = dict(given)
        for option, (sign, value) in changes.get(id(parameter), {}).items():
            if sign == "*" and option not in given:
                raise error(
                    "S570",
                    f"`{name}` takes {value:g} times the `{option}` of the optimizer, "
                    "which is not given",
                    help=f"`surgery.param_groups(model, {option} = …)`",
                )
            options[option] = given[option] * value if sign == "*" else value
        key = tuple(sorted(options.items()))
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
    return list(groups.values())
