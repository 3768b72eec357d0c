"""Merging: the derived weight and bias of each site written into its layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from surgery.anatomy.modules import module_at
from surgery.graft.apply import enforce, keep, take_out
from surgery.graft.became import Became
from surgery.graft.contexts import StateContext, changing
from surgery.graft.hosts import host_of
from surgery.graft.mergeable import mergeable
from surgery.graft.merged_layer import write_merged
from surgery.graft.rebase import rebase
from surgery.graft.sites import sites_of
from surgery.graft.state import Surgery, check_alone, check_standing, required, surgery_of
from surgery.graft.structure import Structure
from surgery.language.diagnostics import error
from surgery.planning.edit import Edit
from surgery.rules.expand import Wrapped


@dataclass(frozen=True)
class Stayed:
    """A method that did not merge, and why."""

    site: str
    child: str
    reason: str


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: ``merged`` as (site, child) pairs, and what stayed in the model."""

    merged: tuple[tuple[str, str], ...]
    stayed: tuple[Stayed, ...]

    def __str__(self) -> str:
        lines = [
            f"Merged {len(self.merged)} adapters into {len({s for s, _ in self.merged})} layers."
        ]
        reasons: dict[str, list[str]] = {}
        for s in self.stayed:
            reasons.setdefault(f"{s.child}: {s.reason}", []).append(s.site)
        for reason, sites in reasons.items():
            more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
            lines.append(f"Not merged: {sites[0]}{more}, {reason}.")
        return "\n".join(lines)


@dataclass(frozen=True)
class Merging:
    """The methods that go into one layer."""

    edits: list[Edit]
    wraps: list[Wrapped]


@dataclass
class MergePlan:
    """What goes into which layers, and what stays."""

    layers: list[Merging] = field(default_factory=list[Merging])
    stayed: list[Stayed] = field(default_factory=list[Stayed])

    @property
    def edits(self) -> list[Edit]:
        """All that goes into layers."""
        return [edit for layer in self.layers for edit in layer.edits]

    @property
    def report(self) -> MergeReport:
        """The plan as it is told once it is carried out."""
        return MergeReport(tuple(e.key for e in self.edits), tuple(self.stayed))


def merge_specs(model: nn.Module) -> MergeReport:
    """Merge for good all that merges; the rest stays grafted.

    Raises:
        SurgeryError: S512 if nothing was applied; S513 if nothing can be merged; S520 inside
            `merged` and `disabled`; S523 if the model has lost what was applied.

    """
    with changing(model, "merge") as structure:
        surgery = required(model)
        check_standing(model, surgery)
        plan = _plan(model, surgery)
        if not plan.layers:
            first = plan.stayed[0] if plan.stayed else None
            help = f"{first.site}: {first.reason}" if first else "it only trains what the base has"
            raise error("S513", "nothing can be merged", help=help)
        report = plan.report
        _carry_out(model, surgery, plan, structure)
    return report


def merged_specs(model: nn.Module) -> StateContext:
    """The model with all that merges merged, while inside; every bit is back after.

    Raises:
        SurgeryError: on entering: S520 if another thread is in `disabled`, S521 if what was
            applied is on record elsewhere, S523 if the model has lost it.

    """
    return StateContext(model, "merged", _merge)


def _merge(model: nn.Module) -> None:
    surgery = surgery_of(model)
    if surgery is None:
        check_alone(model)
        return
    check_standing(model, surgery)
    plan = _plan(model, surgery)
    if plan.layers:
        _carry_out(model, surgery, plan)


def _carry_out(
    model: nn.Module, surgery: Surgery, plan: MergePlan, structure: Structure | None = None
) -> None:
    """Merge one layer after the other; what is computed for one is gone before the next.

    With the ``structure`` of the model weights are written in place where that can be undone;
    without, each gets memory of its own, and what it had stays where it is.
    """
    host_of(model).uninstall(model)
    for layer in plan.layers:
        _write(model, layer, structure)
    take_out(model, plan.edits)
    now = keep(surgery, plan.edits)
    if now.applied:
        now = rebase(model, surgery, now, plan.edits)
    enforce(model, surgery, now)


@torch.no_grad()
def _write(model: nn.Module, merging: Merging, structure: Structure | None) -> None:
    first = merging.edits[0]
    assert first.layer is not None
    module, names = module_at(model, first.owner), first.layer.names
    table = module._parameters
    weight, bias = table[names["W"]], table.get(names["b"])
    assert weight is not None
    lasting, rooms = structure is not None, list[Tensor]()

    def room() -> Tensor:
        rooms.append(_room(weight, structure))
        return rooms[0]

    offset = write_merged(model, first, merging.wraps, room)
    _show(weight, rooms[0], lasting)
    if offset is not None and bias is not None:
        _show(bias, _room(bias, structure).copy_(offset), lasting)
    elif offset is not None:
        added = nn.Parameter(offset, requires_grad=weight.requires_grad)
        setattr(module, names["b"], added)


def _room(parameter: nn.Parameter, structure: Structure | None) -> Tensor:
    """Where the new value of ``parameter`` is written."""
    if structure is not None and structure.holds_alone(parameter):
        structure.keep(parameter)
        return parameter
    return torch.empty_like(parameter, requires_grad=False)


def _show(parameter: nn.Parameter, room: Tensor, lasting: bool) -> None:
    """Have ``parameter`` show what is in the ``room`` made for it.

    A backward through a forward before a ``lasting`` merge fails from here on: it would read the
    weights after. A state has versions of its own (see exchange.py).
    """
    if room is not parameter:
        parameter.data = room
        if lasting and not parameter.is_inference():
            increment_version(parameter)


def _plan(model: nn.Module, surgery: Surgery) -> MergePlan:
    plan, became = MergePlan(), Became(model)
    for site in sites_of(surgery).values():
        first = site.edits[0]
        obstacle = next((o for e in site.edits if (o := e.derived.obstacle)), None)
        if first.signature.kind == "linear" and first.layer is not None and obstacle is None:
            obstacle = became.replaced(first)
        if first.signature.kind != "linear" or first.layer is None or obstacle:
            for edit in site.edits:
                reason = obstacle or edit.derived.reason or "it is not in one layer"
                plan.stayed.append(Stayed(*edit.key, reason))
            continue
        inside = mergeable(site)
        for edit, wrapped in zip(site.edits, site.wraps, strict=True):
            if wrapped not in inside:
                reason = edit.derived.reason or "it follows a method that cannot be merged"
                plan.stayed.append(Stayed(*edit.key, reason))
        if not inside:
            continue
        edits = [e for e, w in zip(site.edits, site.wraps, strict=True) if w in inside]
        tied = became.tied(first) and became.changed(first, inside)
        if tied:
            plan.stayed += [Stayed(*e.key, tied) for e in edits]
        else:
            plan.layers.append(Merging(edits, inside))
    return plan
