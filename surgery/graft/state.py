"""What has been done to a model: a record kept on the model itself, as data.

Records do not change: what is applied or removed puts another one in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, cast

from torch import Tensor, fx, nn

from surgery.anatomy.modules import all_modules
from surgery.graft.container import Graft, graft_at
from surgery.graft.owner import Owner
from surgery.language.diagnostics import error
from surgery.planning.edit import Edit, by_site
from surgery.planning.plan import Plan
from surgery.planning.targets import with_flags
from surgery.rules.expand import Wrapped

ATTRIBUTE = "_surgery"


@dataclass(frozen=True)
class Applied:
    """One applied spec: its plan, the edits of it that are still in the model, the seed."""

    plan: Plan
    edits: tuple[Edit, ...]
    seed: int

    def without(self, gone: set[int]) -> Applied:
        """It without the edits of which the identities are given."""
        return replace(self, edits=tuple(e for e in self.edits if id(e) not in gone))


@dataclass(frozen=True)
class Surgery:
    """All specs applied to one model, in order, and what told its base then.

    ``flags`` tell of each base parameter that a spec decides about whether it trained before.
    """

    base: str
    digests: Mapping[str, str]
    applied: tuple[Applied, ...] = ()
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])
    owner: Owner = field(default_factory=lambda: Owner(None), compare=False)
    BESIDE_FORWARDS: ClassVar[bool] = True

    def edits(self) -> Iterator[Edit]:
        """Every edit in force, in order of application."""
        for applied in self.applied:
            yield from applied.edits

    def standing(self) -> dict[str, list[Wrapped]]:
        """The methods in force by site."""
        return {site: [e.wrapped for e in edits] for site, edits in by_site(self.edits()).items()}

    def current(self) -> list[Edit]:
        """Every edit in force, with the flags that statements of later specs gave its params."""
        found: list[Edit] = []
        for applied in self.applied:
            found = [with_flags(edit, applied.plan.flags) for edit in found]
            found += applied.edits
        return found

    def claimed(self) -> set[str]:
        """The base parameters that specs train."""
        return {name for applied in self.applied for name in applied.plan.trained}

    def decisions(self) -> dict[str, bool]:
        """Which base parameters train by what the specs say: the last one counts."""
        found = dict(self.flags)
        for applied in self.applied:
            found |= applied.plan.decisions
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Surgery:
        copy = replace(self, owner=self.owner.__deepcopy__(memo))
        if copy.owner.module is not None:
            _ROOTS.add(copy.owner.module)
        return copy

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.owner.module, fx.GraphModule):
            raise error(
                "S525",
                "an adapted traced graph cannot be pickled: unpickling would trace its code again",
                help="`surgery.save` the adapter, and pickle the base",
            )
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.owner.module is not None:
            _ROOTS.add(self.owner.module)
            # In a process that only unpickles, nothing else has asked for it.
            import_module("surgery.graft.watching").watch()


_ROOTS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""The models that have a record."""


def roots() -> list[nn.Module]:
    """The models that have a record."""
    return list(_ROOTS)


def surgery_of(model: nn.Module) -> Surgery | None:
    """The record on ``model``, or None if nothing is applied to it.

    Raises:
        SurgeryError: S522 if it is a shallow copy, which shares its record with the original.

    """
    found: Surgery | None = model.__dict__.get(ATTRIBUTE)
    if found is None:
        return None
    owner = found.owner.module
    if owner is None:
        return put(model, found)
    if owner is not model:
        raise error(
            "S522",
            "this is a shallow copy of an adapted model, and shares its parts with it",
            help="copy models with `copy.deepcopy`",
        )
    return found


def put(model: nn.Module, surgery: Surgery) -> Surgery:
    """Make ``surgery`` the record on ``model``; one of nothing is no record."""
    if not surgery.applied:
        model.__dict__.pop(ATTRIBUTE, None)
        return surgery
    made = replace(surgery, owner=Owner(model))
    model.__dict__[ATTRIBUTE] = made
    _ROOTS.add(model)
    return made


def required(model: nn.Module, otherwise: str = "") -> Surgery:
    """The record on ``model``.

    Raises:
        SurgeryError: S512 if there is none, and where there is one, if parts of it are adapted.

    """
    surgery = surgery_of(model)
    if surgery is None:
        message = f"nothing was applied to this model{otherwise}"
        raise error("S512", message, help=elsewhere(model))
    return surgery


def elsewhere(model: nn.Module) -> str | None:
    """Where the record is that tells of ``model`` or of a part of it, in words."""
    modules = all_modules(model)
    recorded = next((m for m in modules[1:] if ATTRIBUTE in m.__dict__), None)
    if recorded is not None:
        path = _path(model, recorded)
        return f"something was applied to its `{path}`: call this with that module"
    for root in list(_ROOTS):
        if root is model or ATTRIBUTE not in root.__dict__:
            continue
        if any(module is model for module in all_modules(root)):
            path, kind = _path(root, model), type(root).__name__
            return f"it is `{path}` of an adapted {kind}: call this with that {kind}"
    if any(isinstance(module, Graft) for module in modules):
        return "it has grafts of a model that it was a part of: call this with that model"
    return None


def check_alone(model: nn.Module) -> None:
    """See that no other record tells of ``model``, of a part of it, or of what it is a part of.

    Raises:
        SurgeryError: S521 if one does.

    """
    where = elsewhere(model)
    if where is not None:
        raise error("S521", "a model and a part of it cannot be adapted apart", help=where)


def check_standing(model: nn.Module, surgery: Surgery) -> None:
    """See that the model still has what ``surgery`` records.

    Raises:
        SurgeryError: S523 if modules with grafts were replaced or deleted, or grafts were.

    """
    for edit in surgery.edits():
        path = f"{edit.owner}.{edit.graft}" if edit.owner else edit.graft
        graft = graft_at(model, edit.owner, edit.graft)
        for tensor in edit.tensors:
            held: Any = graft
            for name in tensor.name[len(path) + 1 :].split("."):
                held = getattr(held, name, None)
            kind = Tensor if tensor.state else nn.Parameter
            if not isinstance(held, kind) or held.shape != tensor.shape:
                raise error(
                    "S523",
                    f"the model was changed since: `{tensor.name}` is gone or has another shape",
                    help="`surgery.remove(model)` takes back all that is left",
                )


def _path(model: nn.Module, wanted: nn.Module) -> str:
    """The name of a module in ``model``, which has it."""
    return next(path for path, module in named_modules(model) if module is wanted)


def named_modules(model: nn.Module, every: bool = False) -> list[tuple[str, nn.Module]]:
    """All modules of ``model`` with their paths; ``every`` path where one has several."""
    untyped: Any = model
    named = untyped.named_modules(remove_duplicate=not every)
    return cast("list[tuple[str, nn.Module]]", list(named))
