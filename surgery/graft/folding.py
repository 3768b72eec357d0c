"""Folding: the networks that made prefixes and prompts give way to what they made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from surgery.graft.computing import compute
from surgery.graft.container import Graft, rehome
from surgery.graft.contexts import changing
from surgery.graft.hosts import host_of
from surgery.graft.sites import program_of
from surgery.graft.state import Surgery, check_standing, put, required
from surgery.language.diagnostics import error
from surgery.planning.edit import Edit
from surgery.planning.edit import Tensor as Planned
from surgery.rules.expand import Wrapped
from surgery.rules.values import Declaration


@dataclass(frozen=True)
class FoldReport:
    """What folding did: the sites where something folded, and parameters before and after."""

    folded: tuple[tuple[str, str], ...]
    before: int
    after: int

    def __str__(self) -> str:
        return f"Folded {len(self.folded)} adapters: {self.before:,} parameters → {self.after:,}."


def fold_specs(model: nn.Module, only: Callable[[Edit], bool] = lambda _: True) -> FoldReport:
    """Fold all that folds and that ``only`` admits, for good.

    Raises:
        SurgeryError: S512 if nothing was applied; S519 if nothing folds; S520 inside `merged` and
            `disabled`; S523 if the model has lost what was applied.

    """
    with changing(model, "fold"):
        surgery = required(model)
        check_standing(model, surgery)
        found = [e for e in surgery.edits() if e.derived.folds and not e.method.folded and only(e)]
        if not found:
            raise error("S519", "nothing to fold: no prefix or prompt is computed by a network")
        before = _elements(model, surgery)
        made = {id(edit): _made(model, surgery, edit) for edit in found}
        host = host_of(model)
        host.uninstall(model)
        for edit, values in made.values():
            _replace(model, edit, values)
        rehome(model)
        now = put(model, _folded(surgery, {key: edit for key, (edit, _) in made.items()}))
        host.install(model, now)
        folded = tuple(e.key for e in found)
        return FoldReport(folded, before, _elements(model, now))


def _folded(surgery: Surgery, made: Mapping[int, Edit]) -> Surgery:
    return replace(
        surgery,
        applied=tuple(
            replace(a, edits=tuple(made.get(id(e), e) for e in a.edits)) for a in surgery.applied
        ),
    )


def as_folded(edit: Edit, wraps: Sequence[Wrapped]) -> Edit:
    """The edit as it is when folded, where ``wraps`` are the methods at its site, its own among them."""
    known = {t.name: t for t in edit.tensors}
    dtype = edit.tensors[0].dtype
    tensors: list[Planned] = []
    for declaration in _declared(edit, wraps):
        name, shape = edit.prefix + declaration.name, declaration.shape_at(edit.sizes)
        tensors.append(known.get(name) or Planned(name, shape, "folded", True, None, dtype))
    method = replace(edit.method, folded=True)
    return replace(edit, method=method, tensors=tuple(tensors))


def _declared(edit: Edit, wraps: Sequence[Wrapped]) -> tuple[Declaration, ...]:
    """The params that a method has when it is folded."""
    folded = [replace(w, folded=True) if w.child == edit.graft else w for w in wraps]
    return dict(program_of(edit, folded).declarations)[edit.graft]


def _made(model: nn.Module, surgery: Surgery, edit: Edit) -> tuple[Edit, dict[str, nn.Parameter]]:
    """The edit as it is when folded, and the parameters it then has."""
    wraps = surgery.standing()[edit.site.whole]
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


def _replace(model: nn.Module, folded: Edit, values: dict[str, nn.Parameter]) -> None:
    graft = Graft()
    for name, parameter in values.items():
        graft._put(name.partition(".")[2], parameter)
    model.get_submodule(folded.owner)._modules[folded.method.child] = graft


def _elements(model: nn.Module, surgery: Surgery) -> int:
    names = {t.name for e in surgery.edits() for t in e.tensors}
    found = {id(p): p.numel() for n, p in model.named_parameters() if n in names}
    return sum(found.values())
