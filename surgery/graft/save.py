"""A saved adaptation: one safetensors file that carries its spec, its rules and its base."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from surgery.graft.apply import apply_spec, drop_edits, make_plan, remove_specs
from surgery.graft.folding import fold_specs
from surgery.graft.hosts import host_of
from surgery.graft.rebase import kept
from surgery.graft.state import Applied, Surgery, surgery_of
from surgery.language.diagnostics import SurgeryError, error
from surgery.planning.fingerprint import difference, digests
from surgery.planning.spec import spec_from_texts

# safetensors has no types of its own.
open_safetensors: Any = safe_open
save_file: Any = safetensors.torch.save_file  # pyright: ignore

FILE = "adapter.safetensors"
KEY = "surgery"
VERSION = 1


def adapter_path(path: str | os.PathLike[str]) -> Path:
    """The file that ``path`` means: itself if it ends in `.safetensors`, else one inside it."""
    target = Path(path)
    return target if target.suffix == ".safetensors" else target / FILE


def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write all that was applied to ``model``: its new parameters and the base ones it trains.

    Raises:
        SurgeryError: S512 if nothing was applied; S509 if the file cannot be written.

    """
    surgery = surgery_of(model)
    if surgery is None:
        raise error("S512", "nothing was applied to this model, so there is nothing to save")
    target = adapter_path(path)
    content = {
        "version": VERSION,
        "base": surgery.base,
        "parameters": surgery.digests,
        "applied": [
            {
                "spec": a.plan.spec.texts(),
                "fingerprint": kept(a.plan, _kept(a)).fingerprint,
                "seed": a.seed,
                "kept": None if len(a.edits) == len(a.plan.edits) else _kept(a),
                "folded": [[e.site, e.child] for e in a.edits if e.folded],
            }
            for a in surgery.applied
        ],
    }
    temporary = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(model, surgery), temporary, metadata={KEY: json.dumps(content)})
        temporary.replace(target)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise error("S509", f"cannot write `{target}`: {problem.strerror or problem}") from None
    return target


def _kept(applied: Applied) -> list[tuple[str, str]]:
    return [(e.site, e.child) for e in applied.edits]


def _names(surgery: Surgery) -> list[str]:
    added = [t.name for _, e in surgery.edits() for t in e.tensors]
    return list(dict.fromkeys([*added, *(n for a in surgery.applied for n in a.plan.trained)]))


def _tensors(model: nn.Module, surgery: Surgery) -> dict[str, Tensor]:
    """The tensors to save; one that several sites share, once."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name in _names(surgery):
        tensor = model.get_parameter(name)
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().contiguous()
    return found


def read_adapter(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and tensors of a saved adaptation.

    Raises:
        SurgeryError: S514 if the file is none.

    """
    target = adapter_path(path)
    try:
        with open_safetensors(target, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as problem:
        raise error("S514", f"cannot read `{target}`: {problem}") from None
    if KEY not in metadata:
        raise error("S514", f"`{target}` was not saved by surgery: it carries no spec")
    content = json.loads(metadata[KEY])
    if content["version"] != VERSION:
        raise error(
            "S514", f"`{target}` is of version {content['version']}, and this reads {VERSION}"
        )
    return content, tensors


def load_adapter(
    model: nn.Module, path: str | os.PathLike[str], example_inputs: Any = None
) -> nn.Module:
    """Apply a saved adaptation to an equal base; on any error the model stays as it was.

    Raises:
        SurgeryError: S514 if the file is no adaptation, S515 if the model is another base, S516 if
            the plan or the tensors do not come out as saved.

    """
    content, tensors = read_adapter(path)
    surgery = surgery_of(model)
    now = surgery.digests if surgery else digests(model)
    if content["parameters"] != now:
        raise error(
            "S515",
            f"this is not the base that the adapter was made for: {difference(content['parameters'], now)}",
            help="load the same checkpoint in the same dtype",
        )
    specs = [spec_from_texts(a["spec"]) for a in content["applied"]]
    before = {id(a) for a in surgery.applied} if surgery else set[int]()
    try:
        for spec, saved in zip(specs, content["applied"], strict=True):
            plan = make_plan(model, spec, example_inputs, settled=True)
            if saved["kept"] is not None:
                plan = kept(plan, map(tuple, saved["kept"]))
            if plan.fingerprint != saved["fingerprint"] and not before:
                raise error(
                    "S516", "the spec plans differently on this model than when it was saved"
                )
            apply_spec(model, spec, example_inputs, saved["seed"], values=tensors)
            _keep_only(model, saved["kept"])
            folded = {(site, child) for site, child in saved["folded"]}
            if folded:
                fold_specs(model, lambda e, folded=folded: (e.site, e.child) in folded)
        _copy(model, tensors)
    except SurgeryError:
        _back_out(model, before)
        raise
    return model


def _keep_only(model: nn.Module, kept: list[list[str]] | None) -> None:
    surgery = surgery_of(model)
    if kept is None or surgery is None:
        return
    applied = surgery.applied[-1]
    wanted = {tuple(k) for k in kept}
    host = host_of(model)
    host.uninstall(model)
    drop_edits(model, applied, [e for e in applied.edits if (e.site, e.child) not in wanted])
    host.install(model, surgery)


def _copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    parameters: dict[str, nn.Parameter] = {}
    for name, tensor in tensors.items():
        try:
            target = parameters[name] = model.get_parameter(name)
        except AttributeError:
            target = None
        if target is None or target.shape != tensor.shape:
            raise error(
                "S516", f"the file's `{name}` {list(tensor.shape)} has no place in this model"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def _back_out(model: nn.Module, before: set[int]) -> None:
    surgery = surgery_of(model)
    if surgery is None:
        return
    for applied in [a for a in surgery.applied if id(a) not in before]:
        for child in {e.child for e in applied.edits}:
            if surgery_of(model) is not None:
                remove_specs(model, child)
