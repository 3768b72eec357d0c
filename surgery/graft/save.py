"""Saving: what was applied to a model, as one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgery.anatomy.modules import module_at
from surgery.graft.adapter_file import adapter_path, write_adapter
from surgery.graft.base import base_facts
from surgery.graft.contexts import adapted
from surgery.graft.state import Applied, Surgery, check_standing, required
from surgery.graft.tensor_file import check_storable
from surgery.language.diagnostics import error
from surgery.language.writing import replacing
from surgery.planning.edit import Edit
from surgery.planning.facts import method_facts


def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write all that was applied to ``model``: its new parameters and the base ones it trains.

    Inside `merged` and `disabled` it is the same file as outside.

    Raises:
        SurgeryError: S512 if nothing was applied; S520 if another thread is in `merged` or `disabled`;
            S523 if the model has lost what was applied; S535 if what is there could not be loaded again;
            S509 if the file cannot be written, and then one that was there stays whole.

    """
    with adapted(model):
        return _save(model, path)


def _save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    surgery = required(model, ", so there is nothing to save")
    check_standing(model, surgery)
    target = adapter_path(path)
    held = list(dict.fromkeys(n for a in surgery.applied for n in a.plan.trained))
    tensors = _added(model, surgery) | {n: _held(model, n) for n in held}
    for name, tensor in tensors.items():
        check_storable(name, tensor)
    base = base_facts(model, held)
    applied = [applied_facts(a) for a in surgery.applied]
    with replacing(target) as file:
        write_adapter(file, base, applied, tensors)
    return target


def applied_facts(applied: Applied) -> dict[str, Any]:
    """What a file keeps of one spec, beside tensors."""
    plan = applied.plan
    stored = stored_names(applied.edits)
    methods = [stored_facts(e, stored) for e in applied.edits]
    here = {e.key for e in applied.edits}
    gone = [e.key for e in plan.edits if e.key not in here]
    return {
        "spec": plan.spec.texts(),
        "seed": int(applied.seed),
        "methods": methods,
        "gone": [{"site": site, "name": child} for site, child in gone],
        "trained": list(plan.trained),
        "frozen": list(plan.frozen),
    }


def stored_names(edits: Sequence[Edit]) -> dict[str, str]:
    """By what name a file holds each parameter: one that several sites share by that at the first."""
    first: dict[Any, str] = {}
    return {
        t.name: first.setdefault(e.shared_key(t) or t.name, t.name)
        for e in edits
        for t in e.tensors
    }


def stored_facts(edit: Edit, stored: Mapping[str, str]) -> dict[str, Any]:
    """A method as files keep it, with where its tensors are in the file."""
    facts = method_facts(edit)
    tensors = [{**t, "stored": stored[t["name"]]} for t in facts["tensors"]]
    return {**facts, "tensors": tensors}


def _added(model: nn.Module, surgery: Surgery) -> dict[str, Tensor]:
    """The parameters that methods have, by the names under which they are stored."""
    found: dict[str, Tensor] = {}
    for applied in surgery.applied:
        stored = stored_names(applied.edits)
        for edit in applied.edits:
            for planned in edit.tensors:
                if stored[planned.name] != planned.name:
                    continue
                tensor = _parameter(model, planned.name, Tensor if planned.state else nn.Parameter)
                if tensor is None or tuple(tensor.shape) != planned.shape:
                    now = "gone" if tensor is None else f"{[*tensor.shape]}"
                    raise error(
                        "S535",
                        f"`{planned.name}` was planned as {[*planned.shape]} and is {now}: "
                        "this could not be loaded again",
                        help="a method's parameters keep their shapes; for others, apply another spec",
                    )
                found[planned.name] = tensor.detach()
    return found


def _held(model: nn.Module, name: str) -> Tensor:
    tensor = _parameter(model, name)
    if tensor is None:
        raise error("S523", f"the model was changed since: `{name}` is gone")
    return tensor.detach()


def _parameter(model: nn.Module, name: str, kind: type[Tensor] = nn.Parameter) -> Tensor | None:
    path, _, last = name.rpartition(".")
    try:
        found = getattr(module_at(model, path), last)
    except AttributeError:
        return None
    return found if isinstance(found, kind) else None
