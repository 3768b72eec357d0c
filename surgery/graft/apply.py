"""Carrying out a plan on a model, and taking it back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.state import uncollected
from surgery.graft.container import Graft, Holders, drop_graft, rehome
from surgery.graft.create import Start, create
from surgery.graft.hosts import host_of
from surgery.graft.state import ATTRIBUTE, Applied, Surgery, surgery_of
from surgery.language.diagnostics import did_you_mean, error
from surgery.planning.build import Planner
from surgery.planning.plan import Edit, Plan, SavedPlan
from surgery.planning.spec import Spec


def make_plan(
    model: nn.Module, spec: Spec, example_inputs: Any = None, settled: bool = False
) -> Plan:
    """Plan ``spec`` for ``model``, which may be adapted already.

    It is ``settled`` what a spec changes that was applied before, and is loaded.
    """
    surgery = surgery_of(model)
    if surgery is None:
        return Planner(model, example_inputs, settled=settled).plan(spec)
    with host_of(model).detached(model):
        planner = Planner(model, example_inputs, surgery.standing(), settled)
        return planner.plan(spec, surgery.digests)


@uncollected()
def apply_spec(
    model: nn.Module,
    spec: Spec | SavedPlan,
    example_inputs: Any = None,
    seed: int | None = None,
    tokenizer: Any = None,
    values: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Plan ``spec`` and carry it out; either all of it happens or nothing.

    New parameters that ``values`` names start as these.

    Raises:
        SurgeryError: as the planner; S511 if a saved plan no longer comes out the same, S418 if
            a text that parameters start as cannot be had.

    """
    if isinstance(spec, SavedPlan):
        plan = make_plan(model, spec.spec, example_inputs)
        if plan.fingerprint != spec.fingerprint:
            cause = "the model is another" if plan.base != spec.base else "it plans differently now"
            raise error(
                "S511",
                f"the saved plan does not fit: {cause}",
                help="plan the spec anew and review the difference",
            )
    else:
        plan = make_plan(model, spec, example_inputs, settled=values is not None)
    _check_instances(model, plan)
    if seed is None:
        seed = int(torch.randint(2**62, ()).item())
    host = host_of(model)
    surgery = surgery_of(model) or Surgery(plan.base, dict(plan.digests))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    created = create(model, surgery, plan, Start(seed, tokenizer, values or {}))
    decided = (*plan.trained, *plan.frozen)
    applied = Applied(
        plan,
        list(plan.edits),
        seed,
        {n: parameters[n].requires_grad for n in decided},
        {n: parameters[n].detach().clone() for n in plan.trained},
    )
    host.uninstall(model)
    surgery.applied.append(applied)
    model.__dict__[ATTRIBUTE] = surgery
    holders: Holders = {}
    for edit, tensors in created:
        _register(model, edit, tensors, holders)
    for names, flag in ((plan.trained, True), (plan.frozen, False)):
        for name in names:
            parameters[name].requires_grad_(flag)
    try:
        host.install(model, surgery)
    except BaseException:
        _withdraw(model, surgery, applied)
        raise
    return plan


def _withdraw(model: nn.Module, surgery: Surgery, applied: Applied) -> None:
    """Take back the newest spec, and put the rest in force again."""
    host = host_of(model)
    host.uninstall(model)
    drop_edits(model, applied, list(applied.edits))
    _restore(model, applied)
    surgery.applied.remove(applied)
    if surgery.applied:
        host.install(model, surgery)
    else:
        del model.__dict__[ATTRIBUTE]


def _check_instances(model: nn.Module, plan: Plan) -> None:
    for path in dict.fromkeys(p for e in plan.edits for p in (e.exit.path, e.owner)):
        if "forward" in model.get_submodule(path).__dict__:
            raise error(
                "S414",
                f"`{path}` has a forward of its own set on the instance, which would pass the graft by",
                help="apply the spec first and wrap the forward after (as accelerate's hooks do)",
            )


def _register(
    model: nn.Module, edit: Edit, tensors: dict[str, nn.Parameter], holders: Holders
) -> None:
    module = model.get_submodule(edit.owner)
    for name, parameter in tensors.items():
        child, _, rest = name.partition(".")
        if child not in module._modules:
            module.add_module(child, Graft())
        graft = module._modules[child]
        assert isinstance(graft, Graft)
        graft.put(rest, parameter, holders)


def remove_specs(model: nn.Module, name: str | None = None) -> None:
    """Take back everything, or what goes by ``name``; base parameters get their bits back.

    Raises:
        SurgeryError: S512 if nothing was applied, or nothing by that name.

    """
    surgery = surgery_of(model)
    if surgery is None:
        raise error("S512", "nothing was applied to this model")
    names = {e.child for _, e in surgery.edits()}
    if name is not None and name not in names:
        raise error(
            "S512",
            f"nothing here is named `{name}`",
            help=did_you_mean(name, names) or _named(names),
        )
    host = host_of(model)
    host.uninstall(model)
    for applied in surgery.applied:
        drop_edits(model, applied, [e for e in applied.edits if name in (None, e.child)])
    for applied in reversed(surgery.applied):
        if not applied.edits:
            _restore(model, applied)
    surgery.applied = [a for a in surgery.applied if a.edits]
    if surgery.applied:
        host.install(model, surgery)
    else:
        del model.__dict__[ATTRIBUTE]


def _named(names: set[str]) -> str | None:
    return f"there are {', '.join(sorted(names))}" if names else None


def drop_edits(model: nn.Module, applied: Applied, edits: list[Edit]) -> None:
    """Forget ``edits`` and take their parameters out of the model."""
    for edit in edits:
        applied.edits.remove(edit)
        drop_graft(model.get_submodule(edit.owner), edit.graft)
    rehome(model)


def _restore(model: nn.Module, applied: Applied) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in applied.values.items():
            parameters[name].copy_(value)
    for name, flag in applied.flags.items():
        parameters[name].requires_grad_(flag)


@contextmanager
def disabled_specs(model: nn.Module) -> Generator[nn.Module]:
    """The base model, to the bit, while inside; adaptations are back after."""
    surgery = surgery_of(model)
    if surgery is None:
        yield model
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {n: v for a in reversed(surgery.applied) for n, v in a.values.items()}
    flags = {n: f for a in reversed(surgery.applied) for n, f in a.flags.items()}
    kept = {n: parameters[n].data for n in before}
    now = {n: parameters[n].requires_grad for n in flags}
    with host_of(model).detached(model):
        try:
            _set(parameters, before, flags)
            yield model
        finally:
            _set(parameters, kept, now)


def _set(
    parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], flags: Mapping[str, bool]
) -> None:
    for name, value in values.items():
        parameters[name].data = value
    for name, flag in flags.items():
        parameters[name].requires_grad_(flag)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name: added ones and the base's."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
