"""Merging: the derived weight and bias of each site written into its layer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from surgery.graft.apply import drop_edits
from surgery.graft.container import drop_graft, tables
from surgery.graft.hosts import host_of
from surgery.graft.initialise import by_expert, compute
from surgery.graft.rebase import rebase
from surgery.graft.sites import Site, program_of, sites_of
from surgery.graft.state import ATTRIBUTE, Applied, Surgery, surgery_of
from surgery.language.diagnostics import error
from surgery.planning.layers import Layer
from surgery.planning.plan import Edit
from surgery.rules.affine import Merge, NotAffine
from surgery.rules.expand import Wrapped
from surgery.rules.expression import Expression
from surgery.rules.simplify import same_value


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
            f"Merged: {len(self.merged)} methods into {len({s for s, _ in self.merged})} layers."
        ]
        reasons: dict[str, list[str]] = {}
        for s in self.stayed:
            reasons.setdefault(f"{s.child}: {s.reason}", []).append(s.site)
        for reason, sites in reasons.items():
            more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
            lines.append(f"Stayed: {sites[0]}{more}, {reason}.")
        return "\n".join(lines)


@dataclass
class _Work:
    """One layer to change: the edits that go into it, and what its tensors become."""

    edits: list[Edit]
    weight: Tensor
    bias: Tensor | None


@dataclass
class _Draft:
    work: dict[str, _Work] = field(default_factory=dict[str, "_Work"])
    stayed: list[Stayed] = field(default_factory=list[Stayed])

    @property
    def edits(self) -> list[Edit]:
        """All that goes into layers."""
        return [e for w in self.work.values() for e in w.edits]

    @property
    def report(self) -> MergeReport:
        merged = tuple((e.site, e.child) for e in self.edits)
        return MergeReport(merged, tuple(self.stayed))


def merge_specs(model: nn.Module) -> MergeReport:
    """Merge for good all that merges; the rest stays grafted.

    Raises:
        SurgeryError: S512 if nothing was applied; S513 if nothing of it merges.

    """
    surgery = surgery_of(model)
    if surgery is None:
        raise error("S512", "nothing was applied to this model")
    draft = _draft(model, surgery)
    if not draft.work:
        first = draft.stayed[0] if draft.stayed else None
        raise error("S513", "nothing here merges", help=first and f"{first.site}: {first.reason}")
    host = host_of(model)
    host.uninstall(model)
    _write(model, draft)
    gone = set(map(id, draft.edits))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for applied in surgery.applied:
        drop_edits(model, applied, [e for e in applied.edits if id(e) in gone])
        if not applied.edits:
            for name, flag in applied.flags.items():
                parameters[name].requires_grad_(flag)
    surgery.applied = [a for a in surgery.applied if a.edits]
    if surgery.applied:
        rebase(model, surgery, draft.edits)
        host.install(model, surgery)
    else:
        del model.__dict__[ATTRIBUTE]
    return draft.report


@contextmanager
def merged_specs(model: nn.Module) -> Generator[nn.Module]:
    """The model with all that merges merged, while inside; every bit is back after."""
    surgery = surgery_of(model)
    if surgery is None:
        yield model
        return
    draft = _draft(model, surgery)
    host = host_of(model)
    host.uninstall(model)
    gone = set(map(id, draft.edits))
    rest = [
        Applied(a.plan, [e for e in a.edits if id(e) not in gone], a.seed, a.flags, a.values)
        for a in surgery.applied
    ]
    during = Surgery(surgery.base, surgery.digests, [a for a in rest if a.edits])
    kept = _write(model, draft)
    children = _take_children(model, draft)
    if during.applied:
        rebase(model, during, draft.edits)
    model.__dict__[ATTRIBUTE] = during
    host.install(model, during)
    try:
        yield model
    finally:
        host.uninstall(model)
        for modules, every in reversed(children):
            modules.clear()
            modules.update(every)
        for table, tensors in kept:
            for name, tensor in tensors.items():
                parameter = table[name]
                if tensor is None or parameter is None:
                    table[name] = None
                else:
                    parameter.data = tensor
        model.__dict__[ATTRIBUTE] = surgery
        host.install(model, surgery)


def _take_children(
    model: nn.Module, draft: _Draft
) -> list[tuple[dict[str, nn.Module | None], dict[str, nn.Module | None]]]:
    """Take off the grafts that are merged; returns what the tables of children held before."""
    kept: list[tuple[dict[str, nn.Module | None], dict[str, nn.Module | None]]] = []
    for work in draft.work.values():
        for edit in work.edits:
            module = model.get_submodule(edit.owner)
            kept += tables(module)
            drop_graft(module, edit.graft)
    return kept


Kept = tuple[dict[str, nn.Parameter | None], dict[str, Tensor | None]]
"""A module's table of parameters, and the tensors that some of them held."""


def _write(model: nn.Module, draft: _Draft) -> list[Kept]:
    """Put the new tensors in place; returns the old ones."""
    kept: list[Kept] = []
    for work in draft.work.values():
        first = work.edits[0]
        assert first.layer is not None
        module, names = model.get_submodule(first.owner), first.layer.names
        table = module._parameters
        weight, bias = table[names["W"]], table.get(names["b"])
        assert weight is not None
        old: dict[str, Tensor | None] = {names["W"]: weight.data}
        weight.data = work.weight
        if work.bias is not None and bias is not None:
            old[names["b"]] = bias.data
            bias.data = work.bias
        elif work.bias is not None:
            old[names["b"]] = None
            added = nn.Parameter(work.bias, requires_grad=weight.requires_grad)
            setattr(module, names["b"], added)
        kept.append((table, old))
    return kept


def _draft(model: nn.Module, surgery: Surgery) -> _Draft:
    draft = _Draft()
    for path, site in sites_of(surgery).items():
        first = site.edits[0]
        obstacle = next((e.obstacle for e in site.edits if e.obstacle), None)
        if first.operator != "linear" or first.layer is None or obstacle:
            for edit in site.edits:
                reason = obstacle or edit.reason or "it is not in one layer"
                draft.stayed.append(Stayed(edit.site, edit.child, reason))
            continue
        inside = _mergeable(site)
        for edit, wrapped in zip(site.edits, site.wraps, strict=True):
            if wrapped not in inside:
                reason = edit.reason or "it stands behind what does not merge"
                draft.stayed.append(Stayed(edit.site, edit.child, reason))
        if inside:
            edits = [e for e, w in zip(site.edits, site.wraps, strict=True) if w in inside]
            draft.work[path] = _work(model, first.owner, first.layer, edits, inside)
    return draft


def _mergeable(site: Site) -> list[Wrapped]:
    """The methods of a site that can go into its weight, the others staying as they are.

    Those that merge by themselves may go first if the site then still computes the same; else
    those in front of the first that does not merge.
    """
    edit, wraps = site.edits[0], site.wraps
    whole = site.program
    if isinstance(whole.merge, Merge):
        return wraps
    alone = [w for w in wraps if isinstance(program_of(edit, [w]).merge, Merge)]
    others = [w for w in wraps if w not in alone]
    reordered = program_of(edit, [*alone, *others])
    if alone and same_value(reordered.result, whole.result):
        return alone
    for length in range(len(wraps) - 1, 0, -1):
        if isinstance(program_of(edit, wraps[:length]).merge, Merge):
            return wraps[:length]
    return []


@torch.no_grad()
def _work(
    model: nn.Module, path: str, layer: Layer, edits: list[Edit], wraps: list[Wrapped]
) -> _Work:
    module = model.get_submodule(path)
    found = program_of(edits[0], wraps).merge
    assert not isinstance(found, NotAffine)
    weight, bias = (module._parameters.get(layer.names[n]) for n in ("W", "b"))
    assert weight is not None
    wide = torch.promote_types(weight.dtype, torch.float32)
    cache: dict[Expression, Tensor] = {}

    def value(e: Expression) -> Tensor:
        if e not in cache:
            if e.op == "operand":
                tensor = module._parameters[layer.names[e.name]]
            else:
                tensor = module.get_parameter(e.name)
            assert tensor is not None
            cache[e] = tensor.detach().to(wide)
        return cache[e]

    if layer.experts:
        return _Work(edits, _each(found.weight, layer, edits[0], value, weight), None)
    matrix = compute(found.weight, layer, edits[0].sizes, value)
    offset = compute(found.bias, layer, edits[0].sizes, value)
    if not layer.adds or (not isinstance(offset, Tensor) and offset == 0 and bias is None):
        offset = None
    if layer.kind == "embedding" and offset is not None:
        # A one-hot input sums to one, so the bias is the same row added to each.
        matrix, offset = (
            matrix + (offset.unsqueeze(1) if isinstance(offset, Tensor) else offset),
            None,
        )
    shaped = matrix.t() if layer.kind in ("transposed", "embedding") else matrix
    merged = shaped.to(weight.dtype).reshape(weight.shape).contiguous()
    if offset is None:
        return _Work(edits, merged, None)
    full = torch.as_tensor(offset, dtype=wide, device=weight.device).expand(layer.out)
    return _Work(edits, merged, full.to(weight.dtype).clone())


def _each(
    matrix: Expression,
    layer: Layer,
    edit: Edit,
    value: Callable[[Expression], Tensor],
    weight: Tensor,
) -> Tensor:
    """The merged weights of all experts, one computed after the other."""
    merged = torch.empty_like(weight)
    for i, into in enumerate(by_expert(merged, layer)):

        def one(e: Expression, i: int = i) -> Tensor:
            return (by_expert(value(e), layer) if e.op == "operand" else value(e))[i]

        found = compute(matrix, layer, edit.sizes, one)
        into.copy_(found.t() if layer.kind == "transposed" else found)
    return merged
