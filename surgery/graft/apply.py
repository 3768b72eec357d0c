"""Carrying out a plan on a model, and taking it back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import all_parameters, module_at
from surgery.anatomy.state import uncollected
from surgery.graft.container import Graft, Holders, drop_graft, rehome, take_grafts
from surgery.graft.contexts import StateContext, changing
from surgery.graft.create import Start, create
from surgery.graft.first import forget, remember, show_first
from surgery.graft.hosts import detached, host_of
from surgery.graft.state import (
    ATTRIBUTE,
    Applied,
    Surgery,
    check_alone,
    check_standing,
    put,
    required,
    surgery_of,
)
from surgery.graft.structure import Structure, set_flag
from surgery.language.diagnostics import did_you_mean, error
from surgery.planning.build import Planner
from surgery.planning.edit import Edit
from surgery.planning.plan import Plan, SavedPlan
from surgery.planning.spec import Spec


def make_plan(
    model: nn.Module, spec: Spec, example_inputs: Any = None, structure: Structure | None = None
) -> Plan:
    """Plan ``spec`` for ``model``, which may be adapted already, and is made of ``structure``."""
    surgery = surgery_of(model)
    if surgery is None:
        check_alone(model)
        return Planner(model, example_inputs).plan(spec)
    check_standing(model, surgery)
    with detached(model, structure):
        planner = Planner(model, example_inputs, surgery.standing(), surgery.current())
        return planner.plan(spec, surgery.digests)


@uncollected()
def apply_spec(
    model: nn.Module,
    spec: Spec | SavedPlan | Plan,
    example_inputs: Any = None,
    seed: int | None = None,
    tokenizer: Any = None,
    values: Mapping[str, Tensor] | None = None,
    tell: Callable[[Plan], object] = lambda _: None,
) -> Plan:
    """Plan ``spec`` and carry it out; either all of it happens or nothing. A plan is not made again.

    New parameters that ``values`` names start as these. ``tell`` is called before anything changes.

    Raises:
        SurgeryError: as the planner; S511 if a saved plan no longer comes out the same, S418 if a
            text that parameters start as cannot be had, S520 inside `merged` and `disabled`, S548
            if ``seed`` is no whole number.

    """
    _check_seed(seed)
    with changing(model, "apply") as structure:
        plan = _planned(model, spec, example_inputs, structure)
        _check_instances(model, plan)
        tell(plan)
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu").item())
        surgery = surgery_of(model) or Surgery(plan.base, dict(plan.digests))
        created = create(model, surgery, plan, Start(seed, tokenizer, values or {}))
        host = host_of(model)
        host.uninstall(model)
        holders: Holders = {}
        for edit, tensors in created:
            _register(model, edit, tensors, holders)
        flags = _train(model, plan, surgery)
        applied = (*surgery.applied, Applied(plan, plan.edits, seed))
        host.install(model, put(model, replace(surgery, applied=applied, flags=flags)))
    return plan


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise error("S548", f"a seed is a whole number, not {seed!r}")


def _planned(
    model: nn.Module, spec: Spec | SavedPlan | Plan, example_inputs: Any, structure: Structure
) -> Plan:
    if isinstance(spec, Plan):
        return spec
    if not isinstance(spec, SavedPlan):
        return make_plan(model, spec, example_inputs, structure)
    plan = make_plan(model, spec.spec, example_inputs, structure)
    if plan.fingerprint != spec.fingerprint:
        cause = "the model is another" if plan.base != spec.base else "it plans differently now"
        raise error(
            "S511",
            f"the saved plan does not fit: {cause}",
            help="plan the spec again and review the difference",
        )
    return plan


def _train(model: nn.Module, plan: Plan, surgery: Surgery) -> dict[str, bool]:
    """Have those of the base's parameters train that ``plan`` says; returns all flags before."""
    parameters = all_parameters(model)
    remember(model, plan.trained)
    flags = dict(surgery.flags)
    for name, flag in plan.decisions.items():
        flags.setdefault(name, parameters[name].requires_grad)
        set_flag(parameters[name], flag)
    for name, flag in plan.flags.items():
        if name in parameters:
            set_flag(parameters[name], flag)
    return flags


def _check_instances(model: nn.Module, plan: Plan) -> None:
    for path in dict.fromkeys(p for e in plan.edits for p in (e.site.exit.path, e.owner)):
        if "forward" in module_at(model, path).__dict__:
            raise error(
                "S414",
                f"`{path}` has `forward` overridden on the instance, which would bypass the adapter",
                help="apply the spec first and wrap the forward after (as accelerate's hooks do)",
            )


def _register(
    model: nn.Module, edit: Edit, tensors: Mapping[str, Tensor], holders: Holders
) -> None:
    module = module_at(model, edit.owner)
    for name, parameter in tensors.items():
        child, _, rest = name.partition(".")
        if child not in module._modules:
            module.add_module(child, Graft())
        graft = module._modules[child]
        assert isinstance(graft, Graft)
        graft._put(rest, parameter, holders)


def remove_specs(model: nn.Module, name: str | None = None) -> None:
    """Take back everything, or what goes by ``name``.

    A spec goes with its last method. What of the base no other spec trains then gets its bits
    back; whether it trains is for the specs that are left to say.

    Raises:
        SurgeryError: S512 if nothing was applied, or nothing by that name; S520 inside `merged`
            and `disabled`; S523 if the model has lost what is to stay.

    """
    with changing(model, "remove") as structure:
        surgery = required(model)
        _check_name(name)
        names = {n for applied in surgery.applied for n in _names(applied)}
        if name is not None and name not in names:
            raise error(
                "S512",
                f"nothing here is named `{name}`",
                help=did_you_mean(name, names) or _named(names),
            )
        edits = [e for e in surgery.edits() if name in (None, e.method.child)]
        kept = keep(surgery, edits, [] if name is None else _training(surgery, name))
        if kept.applied:
            check_standing(model, kept)
        drop(model, edits)
        enforce(model, surgery, kept, structure)


def _check_name(name: Any) -> None:
    if not isinstance(name, str | None):
        raise error("S512", f"a name is a text, and this is {name!r}")


def _names(applied: Applied) -> set[str]:
    """What it can be removed by: its methods' names, or the file's if it has none and only trains."""
    file = PurePath(applied.plan.spec.name)
    if not applied.plan.edits and file.suffix == ".peft":
        return {file.stem}
    return {e.method.child for e in applied.edits}


def _training(surgery: Surgery, name: str) -> list[Applied]:
    """The specs that have no methods, and go by another name or by none."""
    return [a for a in surgery.applied if not a.plan.edits and name not in _names(a)]


def _named(names: set[str]) -> str | None:
    if names:
        return f"there are {', '.join(sorted(names))}"
    return "what only trains the base goes with all: `surgery.remove(model)`"


def keep(surgery: Surgery, gone: Iterable[Edit], also: Iterable[Applied] = ()) -> Surgery:
    """The record without some edits, and without specs that then have none; but ``also`` these."""
    lost, staying = set(map(id, gone)), set(map(id, also))
    left = [(a, a.without(lost)) for a in surgery.applied]
    return replace(surgery, applied=tuple(b for a, b in left if b.edits or id(a) in staying))


def drop(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Take ``edits`` out of the model, where they still are in it; what is left is not in force."""
    host_of(model).uninstall(model)
    take_out(model, edits)


def take_out(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Take the parameters of ``edits`` off their modules."""
    for edit in edits:
        try:
            module = module_at(model, edit.owner)
        except AttributeError:
            continue
        drop_graft(module, edit.graft)
    rehome(model)


def enforce(
    model: nn.Module, before: Surgery, now: Surgery, structure: Structure | None = None
) -> None:
    """Make ``now`` the record and put it in force, where what it lacks has been dropped.

    With the ``structure`` of the model, base parameters that none of it trains get their first
    values back; without, they stay as they are.
    """
    forget(model, now.claimed(), structure)
    parameters = all_parameters(model)
    old, new = before.decisions(), now.decisions()
    decided = {n for a in now.applied for n in a.plan.decisions}
    for name in before.flags:
        if name in parameters and (name not in decided or new[name] != old[name]):
            set_flag(parameters[name], new[name])
    were = {t.name: t.trained for e in before.current() for t in e.tensors}
    for tensor in (t for e in now.current() for t in e.tensors):
        if tensor.name in parameters and tensor.trained != were.get(tensor.name, tensor.trained):
            set_flag(parameters[tensor.name], tensor.trained)
    flags = {n: f for n, f in before.flags.items() if n in decided}
    record = put(model, replace(now, flags=flags))
    if record.applied:
        host_of(model).install(model, record)


def disabled_specs(model: nn.Module) -> StateContext:
    """The base model, to the bit, while inside; adaptations are back after.

    Raises:
        SurgeryError: on entering: S520 if another thread is in `merged`, S521 if what was applied
            is on record elsewhere.

    """
    return StateContext(model, "disabled", _bare)


def _bare(model: nn.Module) -> None:
    surgery = surgery_of(model)
    if surgery is None:
        check_alone(model)
        return
    host_of(model).uninstall(model)
    take_grafts(model)
    show_first(model)
    parameters = all_parameters(model)
    for name, flag in surgery.flags.items():
        if name in parameters:
            set_flag(parameters[name], flag)
    del model.__dict__[ATTRIBUTE]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name: added ones and the base's."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
