"""Folding: the networks that made prefixes and prompts give way to what they made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from surgery.rules.expand import Wrapped
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


def as_folded(edit: Edit, wraps: Sequence[Wrapped]) -> Edit:
    """The edit as it is when folded, where ``wraps`` are the methods at its site, its own among them."""
    prefix = f"{edit.owner}." if edit.owner else ""
    known = {t.name: t for t in edit.tensors}
    dtype = edit.tensors[0].dtype
    tensors: list[Added] = []
    for declaration in _declared(edit, wraps):
        name = prefix + declaration.name
        shape = tuple(int(d.value(edit.sizes)) for d in declaration.shape)
        tensors.append(known.get(name) or Added(name, shape, "folded", True, None, dtype))
    return replace(edit, tensors=tuple(tensors), folded=True)


def _declared(edit: Edit, wraps: Sequence[Wrapped]) -> tuple[Declaration, ...]:
    """The params that a method has when it is folded."""
    folded = [replace(w, folded=True) if w.child == edit.graft else w for w in wraps]
    return dict(program_of(edit, folded).declarations)[edit.graft]


def _made(model: nn.Module, surgery: Surgery, edit: Edit) -> tuple[Edit, dict[str, nn.Parameter]]:
    """The edit as it is when folded, and the parameters it then has."""
    wraps = surgery.standing()[edit.whole]
    owner = model.get_submodule(edit.owner)
    known = {t.name for t in edit.tensors}
    folded = as_folded(edit, wraps)
    values: dict[str, nn.Parameter] = {}
    for tensor, declaration in zip(folded.tensors, _declared(edit, wraps), strict=True):
        name = declaration.name
        kept = tensor.name in known
        value = owner.get_parameter(name) if kept else _value(owner, declaration, edit)
        values[name] = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
    return folded, values


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
        graft.put(name.partition(".")[2], parameter)
    model.get_submodule(edit.owner)._modules[edit.child] = graft


def _elements(model: nn.Module) -> int:
    surgery = surgery_of(model)
    names = {t.name for _, e in surgery.edits() for t in e.tensors} if surgery else set[str]()
    found = {id(p): p.numel() for n, p in model.named_parameters() if n in names}
    return sum(found.values())
