"""Merging: the derived weight and bias of each site written into its layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from surgery.anatomy.modules import module_at
from surgery.graft.apply import drop, enforce, keep
from surgery.graft.became import Became
from surgery.graft.contexts import Context, changing
from surgery.graft.initialise import by_expert, compute, run
from surgery.graft.mergeable import mergeable
from surgery.graft.rebase import rebase
from surgery.graft.sites import program_of, sites_of
from surgery.graft.state import Surgery, check_alone, check_standing, required, surgery_of
from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.planning.edit import Edit
from surgery.planning.reading import merged
from surgery.rules.affine import NotAffine
from surgery.rules.expand import Wrapped
from surgery.rules.expression import Expression


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
        merged = tuple(e.key for e in self.edits)
        return MergeReport(merged, tuple(self.stayed))


def merge_specs(model: nn.Module) -> MergeReport:
    """Merge for good all that merges; the rest stays grafted.

    Raises:
        SurgeryError: S512 if nothing was applied; S513 if nothing can be merged; S520 inside
            `merged` and `disabled`; S523 if the model has lost what was applied.

    """
    with changing(model, "merge"):
        surgery = required(model)
        check_standing(model, surgery)
        draft = _draft(model, surgery)
        if not draft.work:
            first = draft.stayed[0] if draft.stayed else None
            help = f"{first.site}: {first.reason}" if first else "it only trains what the base has"
            raise error("S513", "nothing can be merged", help=help)
        _carry_out(model, surgery, draft)
        _outdate(model, draft)
    return draft.report


def merged_specs(model: nn.Module) -> Context:
    """The model with all that merges merged, while inside; every bit is back after.

    Raises:
        SurgeryError: on entering: S520 if another thread is in `disabled`, S521 if what was
            applied is on record elsewhere, S523 if the model has lost it.

    """
    return Context(model, "merged", _merge)


def _merge(model: nn.Module) -> None:
    surgery = surgery_of(model)
    if surgery is None:
        check_alone(model)
        return
    check_standing(model, surgery)
    draft = _draft(model, surgery)
    if draft.work:
        _carry_out(model, surgery, draft)


def _carry_out(model: nn.Module, surgery: Surgery, draft: _Draft) -> None:
    drop(model, draft.edits)
    _write(model, draft)
    now = keep(surgery, draft.edits)
    if now.applied:
        now = rebase(model, surgery, now, draft.edits)
    enforce(model, surgery, now)


def _write(model: nn.Module, draft: _Draft) -> None:
    """Put the new tensors in place, in memory of their own."""
    for work in draft.work.values():
        first = work.edits[0]
        assert first.layer is not None
        module, names = module_at(model, first.owner), first.layer.names
        table = module._parameters
        weight, bias = table[names["W"]], table.get(names["b"])
        assert weight is not None
        weight.data = work.weight
        if work.bias is not None and bias is not None:
            bias.data = work.bias
        elif work.bias is not None:
            added = nn.Parameter(work.bias, requires_grad=weight.requires_grad)
            setattr(module, names["b"], added)


def _outdate(model: nn.Module, draft: _Draft) -> None:
    """Have a backward through a forward before the merge fail: it would read the weights after."""
    for work in draft.work.values():
        first = work.edits[0]
        assert first.layer is not None
        table = model.get_submodule(first.owner)._parameters
        for name in first.layer.names.values():
            parameter = table.get(name)
            if parameter is not None and not parameter.is_inference():
                increment_version(parameter)


def _draft(model: nn.Module, surgery: Surgery) -> _Draft:
    draft, became = _Draft(), Became(model)
    for path, site in sites_of(surgery).items():
        first = site.edits[0]
        obstacle = next((o for e in site.edits if (o := e.derived.obstacle)), None)
        if first.signature.kind == "linear" and first.layer is not None and obstacle is None:
            obstacle = became.replaced(first)
        if first.signature.kind != "linear" or first.layer is None or obstacle:
            for edit in site.edits:
                reason = obstacle or edit.derived.reason or "it is not in one layer"
                draft.stayed.append(Stayed(*edit.key, reason))
            continue
        inside = mergeable(site)
        for edit, wrapped in zip(site.edits, site.wraps, strict=True):
            if wrapped not in inside:
                reason = edit.derived.reason or "it follows a method that cannot be merged"
                draft.stayed.append(Stayed(*edit.key, reason))
        if not inside:
            continue
        edits = [e for e, w in zip(site.edits, site.wraps, strict=True) if w in inside]
        work = _work(model, first.owner, first.layer, edits, inside)
        tied = became.tied(first, work.weight, work.bias)
        if tied is None:
            draft.work[path] = work
        else:
            draft.stayed += [Stayed(*e.key, tied) for e in edits]
    return draft


@torch.no_grad()
def _work(
    model: nn.Module, path: str, layer: Layer, edits: list[Edit], wraps: list[Wrapped]
) -> _Work:
    module = module_at(model, path)
    found = merged(program_of(edits[0], wraps), layer)
    assert not isinstance(found, NotAffine)
    weight, bias = (module._parameters.get(layer.names[n]) for n in ("W", "b"))
    # One that its module adds later is no part of the product.
    bias = bias if layer.bias else None
    assert weight is not None
    wide = torch.promote_types(weight.dtype, torch.float32)
    cache: dict[Expression, Tensor] = {}

    def value(e: Expression) -> Tensor:
        if e not in cache:
            if e.op == "operand":
                tensor = module._parameters[layer.names[e.name]]
            else:
                holder, _, name = e.name.rpartition(".")
                tensor = getattr(module_at(module, holder), name)
            assert tensor is not None
            cache[e] = tensor.detach().to(wide)
        return cache[e]

    if layer.experts:
        return _Work(edits, _each(found.weight, layer, edits[0], value, weight), None)
    matrix = compute(found.weight, layer, edits[0].sizes, value)
    offset = compute(found.bias, layer, edits[0].sizes, value)
    if not layer.adds or (not isinstance(offset, Tensor) and offset == 0 and bias is None):
        offset = None
    made = layer.as_weight(run, matrix).to(weight.dtype).reshape(weight.shape)
    if made.stride() != weight.stride():
        made = torch.empty_like(weight).copy_(made)
    if offset is None:
        return _Work(edits, made, None)
    full = torch.empty(layer.out, dtype=weight.dtype, device=weight.device)
    return _Work(edits, made, full.copy_(torch.as_tensor(offset, device=weight.device)))


def _each(
    matrix: Expression,
    layer: Layer,
    edit: Edit,
    value: Callable[[Expression], Tensor],
    weight: Tensor,
) -> Tensor:
    """The merged weights of all experts, one computed after the other."""
    made = torch.empty_like(weight)
    for i, into in enumerate(by_expert(made, layer)):

        def one(e: Expression, i: int = i) -> Tensor:
            return (by_expert(value(e), layer) if e.op == "operand" else value(e))[i]

        found = compute(matrix, layer, edit.sizes, one)
        into.copy_(layer.kind.as_weight(run, layer, found))
    return made
