"""Folding: the networks that made prefixes and prompts give way to what they made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from surgery.graft.container import Graft, rehome
from surgery.graft.contexts import changing
from surgery.graft.hosts import host_of
from surgery.graft.initialise import compute
from surgery.graft.sites import program_of
from surgery.graft.state import Surgery, check_standing, put, required
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
        SurgeryError: S512 if nothing was applied; S519 if nothing folds; S520 inside `merged` and
            `disabled`; S523 if the model has lost what was applied.

    """
    with changing(model, "fold"):
        surgery = required(model)
        check_standing(model, surgery)
        found = [e for _, e in surgery.edits() if e.folds and not e.folded and only(e)]
        if not found:
            raise error("S519", "nothing here folds: no prefix or prompt is made by a network")
        before = _elements(model, surgery)
        made = {id(edit): _made(model, surgery, edit) for edit in found}
        host = host_of(model)
        host.uninstall(model)
        for edit, values in made.values():
            _replace(model, edit, values)
        rehome(model)
        now = put(model, _folded(surgery, {key: edit for key, (edit, _) in made.items()}))
        host.install(model, now)
        folded = tuple((e.site, e.child) for e in found)
        return FoldReport(folded, before, _elements(model, now))


def _folded(surgery: Surgery, made: Mapping[int, Edit]) -> Surgery:
    return replace(
        surgery,
        applied=tuple(
            replace(a, edits=tuple(made.get(id(e), e) for e in a.edits)) for a in surgery.applied
        ),
    )


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


def _replace(model: nn.Module, folded: Edit, values: dict[str, nn.Parameter]) -> None:
    graft = Graft()
    for name, parameter in values.items():
        graft.put(name.partition(".")[2], parameter)
    model.get_submodule(folded.owner)._modules[folded.child] = graft


def _elements(model: nn.Module, surgery: Surgery) -> int:
    names = {t.name for _, e in surgery.edits() for t in e.tensors}
    found = {id(p): p.numel() for n, p in model.named_parameters() if n in names}
    return sum(found.values())
