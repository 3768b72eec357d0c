"""Folding: the networks that made prefixes and prompts give way to what they made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from surgery.graft.container import Graft, rehome
from surgery.graft.hosts import host_of
from surgery.graft.initialise import compute
from surgery.graft.sites import program_of
from surgery.graft.state import Applied, Surgery, surgery_of
from surgery.language.diagnostics import error
from surgery.planning.plan import Edit
from surgery.planning.plan import Tensor as Added
from surgery.rules.values import Declaration


@dataclass(frozen=True)
class FoldReport:
    """What folding did: the sites where something folded, and parameters before and after."""

    folded: tuple[tuple[str, str], ...]
    before: int
    after: int

    def __str__(self) -> str:
        return f"Folded: {len(self.folded)} methods, {self.before:,} parameters → {self.after:,}."


def fold_specs(model: nn.Module, only: Callable[[Edit], bool] = lambda _: True) -> FoldReport:
    """Fold all that folds and that ``only`` admits, for good.

    Raises:
        SurgeryError: S512 if nothing was applied; S519 if nothing folds.

    """
    surgery = surgery_of(model)
    if surgery is None:
        raise error("S512", "nothing was applied to this model")
    found = [
        (applied, edit)
        for applied, edit in surgery.edits()
        if edit.folds and not edit.folded and only(edit)
    ]
    if not found:
        raise error("S519", "nothing here folds: no prefix or prompt is made by a network")
    before = _elements(model)
    host = host_of(model)
    made = [(applied, edit, *_made(model, surgery, edit)) for applied, edit in found]
    host.uninstall(model)
    for applied, edit, folded, values in made:
        _replace(model, applied, edit, folded, values)
    rehome(model)
    host.install(model, surgery)
    folded = tuple((e.site, e.child) for _, e, _, _ in made)
    return FoldReport(folded, before, _elements(model))


def _made(model: nn.Module, surgery: Surgery, edit: Edit) -> tuple[Edit, dict[str, nn.Parameter]]:
    """The edit as it is when folded, and the parameters it then has."""
    wraps = [
        replace(w, folded=True) if w.child == edit.child else w
        for w in surgery.standing()[edit.whole]
    ]
    declared = dict(program_of(edit, wraps).declarations)[edit.child]
    owner = model.get_submodule(edit.owner)
    known = {t.name: t for t in edit.tensors}
    prefix = f"{edit.owner}." if edit.owner else ""
    tensors: list[Added] = []
    values: dict[str, nn.Parameter] = {}
    for declaration in declared:
        name = prefix + declaration.name
        if name in known:
            tensors.append(known[name])
            values[declaration.name] = owner.get_parameter(declaration.name)
            continue
        value = _value(owner, declaration, edit)
        values[declaration.name] = nn.Parameter(value)
        dtype = edit.tensors[0].dtype
        tensors.append(Added(name, tuple(value.shape), "folded", True, None, dtype))
    return replace(edit, tensors=tuple(tensors), folded=True), values


@torch.no_grad()
def _value(owner: nn.Module, declaration: Declaration, edit: Edit) -> Tensor:
    assert declaration.init.value is not None
    return compute(
        declaration.init.value, None, edit.sizes, lambda e: owner.get_parameter(e.name)
    ).clone(memory_format=torch.contiguous_format)


def _replace(
    model: nn.Module,
    applied: Applied,
    edit: Edit,
    folded: Edit,
    values: dict[str, nn.Parameter],
) -> None:
    applied.edits[applied.edits.index(edit)] = folded
    graft = Graft()
    for name, parameter in values.items():
        graft._put(name.partition(".")[2], parameter)
    model.get_submodule(edit.owner)._modules[edit.child] = graft


def _elements(model: nn.Module) -> int:
    surgery = surgery_of(model)
    names = {t.name for _, e in surgery.edits() for t in e.tensors} if surgery else set[str]()
    found = {id(p): p.numel() for n, p in model.named_parameters() if n in names}
    return sum(found.values())
