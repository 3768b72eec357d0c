"""What is on record of a model's base, after merging has made it another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from surgery.anatomy.site import LinearMap
from surgery.graft.state import Applied, Surgery
from surgery.planning.edit import Edit
from surgery.planning.fingerprint import digest, fingerprint
from surgery.planning.plan import Plan


def rebase(model: nn.Module, before: Surgery, now: Surgery, merged: Iterable[Edit]) -> Surgery:
    """``now`` as it stands on the layers that ``merged`` edits went into, as they are now.

    What stays in the model is saved for the merged base and loads on that one; a bias that a layer
    has got by merging is part of it, and so are base parameters that a spec trained which ``now``
    lacks. Those that one still trains keep the digest that they had when it was applied.
    """
    first = {id(p): name for name, p in model.named_parameters()}
    changed: dict[str, nn.Parameter] = {}
    biased: set[str] = set()
    for edit in merged:
        assert edit.layer is not None
        table = model.get_submodule(edit.owner)._parameters
        own = [p for name in edit.layer.names.values() if (p := table.get(name)) is not None]
        changed |= {first[id(parameter)]: parameter for parameter in own}
        if len(own) > 1 and not edit.layer.bias:
            biased.add(edit.owner)
    trained = now.claimed()
    parameters = dict(model.named_parameters())
    changed |= {n: parameters[n] for n in before.claimed() - trained if n in parameters}
    fresh = {name: digest(p) for name, p in changed.items() if name not in trained}
    added = [name for name in fresh if name not in now.digests]
    digests = {**now.digests, **fresh}
    made = replace(now, digests=digests, base=fingerprint(digests))
    applied = tuple(_following(model, made, one, biased, added) for one in now.applied)
    return replace(made, applied=applied)


def _following(
    model: nn.Module, surgery: Surgery, applied: Applied, biased: set[str], added: list[str]
) -> Applied:
    def now(edit: Edit) -> Edit:
        return _with_bias(edit) if edit.owner in biased else edit

    plan = applied.plan
    frozen = {*plan.frozen, *added} if plan.frozen else set[str]()
    return replace(
        applied,
        edits=tuple(map(now, applied.edits)),
        plan=replace(
            plan,
            base=surgery.base,
            digests=surgery.digests,
            edits=tuple(map(now, plan.edits)),
            frozen=tuple(n for n, _ in model.named_parameters() if n in frozen),
        ),
    )


def _with_bias(edit: Edit) -> Edit:
    match edit.site.operator:
        case LinearMap(layer) as operator:
            biased = replace(operator, layer=replace(layer, bias=True))
            return replace(edit, site=replace(edit.site, operator=biased))
        case _:
            return edit


def kept(plan: Plan, edits: Iterable[tuple[str, str]]) -> Plan:
    """``plan`` with no more than some of its edits, by site and name."""
    wanted = set(edits)
    return replace(plan, edits=tuple(e for e in plan.edits if e.key in wanted))
