"""Loading: all of a file is held against the model before anything of the model changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import all_parameters
from surgery.graft.adapter_file import AdapterFile, read_adapter
from surgery.graft.apply import apply_spec
from surgery.graft.base import Match, check_base
from surgery.graft.contexts import changing
from surgery.graft.folding import as_folded
from surgery.graft.hosts import detached
from surgery.graft.save import stored_facts, stored_names
from surgery.graft.state import put, required, surgery_of
from surgery.graft.structure import Structure, set_flag
from surgery.language.diagnostics import Diagnostic, SurgeryError, error
from surgery.planning.build import Planner
from surgery.planning.edit import Edit
from surgery.planning.facts import first_difference
from surgery.planning.fingerprint import dtype_name
from surgery.planning.plan import Plan
from surgery.planning.spec import Spec, spec_from_texts
from surgery.planning.targets import with_flags
from surgery.rules.expand import Wrapped

MOST_SHOWN = 20_000
"""Characters of a spec that a message quotes lines of."""


@dataclass(frozen=True)
class _Draft:
    """One spec of a file: the plan that it gives, and what of it is in the file."""

    saved: Mapping[str, Any]
    plan: Plan
    edits: tuple[Edit, ...]


def load_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    base: Match = "exact",
    tell: Callable[[str], object] = lambda _: None,
) -> str | None:
    """Apply a saved adaptation; on any error the model stays as it was.

    Returns:
        What of the base was not compared, in words, if that is anything. ``tell`` gets it before
        anything changes.

    Raises:
        SurgeryError: S514 if the file is no adaptation, S515 if the model is another base, S516 if
            what the file holds does not come out of its spec on this model, S536 for an unknown
            word for ``base``.

    """
    if base not in ("exact", "shape"):
        raise error("S536", f"{base!r} says nothing here", help='`base` is "exact" or "shape"')
    file = read_adapter(path)
    if not file.content["applied"]:
        raise _unfit("it has no spec")
    held = {n for a in file.content["applied"] for n in a["trained"]}
    with changing(model, "load") as structure:
        uncompared = check_base(model, file.content["base"], held, base)
        with _explained(file):
            drafts = _drafts(model, file, example_inputs, structure)
            _check_tensors(file, drafts)
        if uncompared:
            tell(uncompared)
        with _explained(file):
            _carry_out(model, drafts, _values(file, drafts, base), structure)
    return uncompared


def restore_adapter(model: nn.Module, file: AdapterFile) -> None:
    """Apply to its base, ``model``, what an exported program says was applied to it.

    Raises:
        SurgeryError: S516 if that does not come out of its specs.

    """
    with changing(model, "load") as structure, _explained(file):
        drafts = _drafts(model, file, None, structure)
        _check_tensors(file, drafts)
        _carry_out(model, drafts, file.tensors, structure)


@contextmanager
def _explained(file: AdapterFile) -> Generator[None]:
    """What goes wrong inside is due to the content of ``file``: S516."""
    try:
        yield
    except SurgeryError as problem:
        first = problem.diagnostics[0]
        if first.code == "S516":
            raise
        # A hostile text may be one line of any length.
        shown = all(len(x.span.source.text) < MOST_SHOWN for x in first.labels)
        found = Diagnostic(
            "S516",
            f"what `{file.path}` holds does not fit this model: {_short(first.message)} ({first.code})",
            first.labels if shown else (),
            first.help and _short(first.help),
        )
        raise SurgeryError(found) from None
    except Exception as cause:
        how = f"{type(cause).__name__}: {_short(str(cause))}"
        raise _unfit(f"its spec cannot be carried out: {how}") from cause


def _short(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _unfit(how: str) -> SurgeryError:
    return error("S516", f"what the file holds does not fit this model: {how}")


def _drafts(
    model: nn.Module, file: AdapterFile, example_inputs: Any, structure: Structure
) -> list[_Draft]:
    """The plans of all specs of a file, each made as if those before it were applied."""
    specs = [spec_from_texts(a["spec"]) for a in file.content["applied"]]
    surgery = surgery_of(model)
    standing: dict[str, list[Wrapped]] = surgery.standing() if surgery else {}
    drafts: list[_Draft] = []
    with detached(model, structure), _same_flags(model):
        edits = surgery.current() if surgery else []
        planner = Planner(model, example_inputs, standing, edits, settled=True)
        for spec, saved in zip(specs, file.content["applied"], strict=True):
            draft = _draft(planner, spec, saved)
            drafts.append(draft)
            for edit in draft.edits:
                standing.setdefault(edit.site.whole, []).append(edit.wrapped)
            _set_flags(model, draft.plan)
            edits[:] = [with_flags(e, draft.plan.flags) for e in edits] + [*draft.edits]
    return drafts


def _draft(planner: Planner, spec: Spec, saved: Mapping[str, Any]) -> _Draft:
    surgery = surgery_of(planner.model)
    plan = planner.plan(spec, surgery.digests if surgery else None)
    for key, now in (("trained", plan.trained), ("frozen", plan.frozen)):
        if sorted(saved[key]) != sorted(now):
            raise _unfit(f"its spec has other parameters {key} now: {_other(saved[key], now)}")
    gone = {(g["site"], g["name"]) for g in saved["gone"]}
    folded = {(m["site"], m["name"]) for m in saved["methods"] if m["folded"]}
    planned = {e.key: e for e in plan.edits}
    for site, name in gone - planned.keys():
        raise _unfit(f"its spec puts no `{name}` at `{site}` now")
    for key in folded:
        if key not in planned or not planned[key].derived.folds:
            raise _unfit(f"`{key[1]}` at `{key[0]}` does not fold")
    wraps = {path: list(given) for path, given in planner.standing.items()}
    edits: list[Edit] = []
    for key, edit in planned.items():
        if key not in gone:
            before = wraps.setdefault(edit.site.whole, [])
            at = [*before, edit.wrapped]
            edits.append(as_folded(edit, at) if key in folded else edit)
            before.append(edits[-1].wrapped)
    stored = stored_names(edits)
    different = first_difference(saved["methods"], [stored_facts(e, stored) for e in edits])
    if different is None and len(saved["methods"]) != len(edits):
        different = "it lists a method twice"
    if different:
        raise _unfit(different)
    return _Draft(saved, plan, tuple(edits))


def _other(saved: list[str], now: tuple[str, ...]) -> str:
    names = set(saved) ^ set(now)
    return f"`{min(names)}`" if names else "some of them twice"


@contextmanager
def _same_flags(model: nn.Module) -> Generator[None]:
    """Planning may set flags inside; they are as before after."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in before:
            set_flag(parameter, flag)


def _set_flags(model: nn.Module, plan: Plan) -> None:
    parameters = all_parameters(model)
    for name, flag in plan.decisions.items():
        set_flag(parameters[name], flag)


def _check_tensors(file: AdapterFile, drafts: list[_Draft]) -> None:
    """The file holds the parameters of its methods and those of the base that it trains, no others."""
    wanted: dict[str, tuple[list[int], str]] = {}
    whole = set[str]()
    for draft in drafts:
        stored = stored_names(draft.edits)
        own = {t.name: ([*t.shape], t.dtype) for e in draft.edits for t in e.tensors}
        whole |= {t.name for e in draft.edits for t in e.tensors if t.dtype == "int64"}
        wanted |= {name: form for name, form in own.items() if stored[name] == name}
        for name in draft.plan.trained:
            facts = file.content["base"]["parameters"][name]
            wanted[name] = (facts["shape"], facts["dtype"])
    for name in sorted(wanted.keys() ^ file.tensors.keys()):
        raise _unfit(f"it lacks `{name}`" if name in wanted else f"its `{name}` has no place in it")
    fixed = whole | {n for d in drafts for n in d.plan.trained}
    for name, (shape, dtype) in wanted.items():
        tensor = file.tensors[name]
        # New parameters may have been cast before they were saved.
        same = dtype_name(tensor) == dtype if name in fixed else tensor.is_floating_point()
        if [*tensor.shape] != shape or not same:
            form = f"{dtype_name(tensor)} {[*tensor.shape]}"
            raise _unfit(f"its `{name}` is {form}, and should be {dtype} {shape}")


def _values(file: AdapterFile, drafts: list[_Draft], base: Match) -> dict[str, Tensor]:
    """The tensors of the file: in their own dtypes, or in those that the model asks for."""
    if base == "exact":
        return dict(file.tensors)
    planned = {t.name: getattr(torch, t.dtype) for d in drafts for e in d.edits for t in e.tensors}
    return {n: t.to(planned.get(n, t.dtype)) for n, t in file.tensors.items()}


def _carry_out(
    model: nn.Module, drafts: list[_Draft], values: Mapping[str, Tensor], structure: Structure
) -> None:
    for draft in drafts:
        kept = replace(draft.plan, edits=draft.edits)
        apply_spec(model, kept, seed=draft.saved["seed"], values=values)
        surgery = required(model)
        applied = replace(surgery.applied[-1], plan=draft.plan)
        put(model, replace(surgery, applied=(*surgery.applied[:-1], applied)))
    parameters = all_parameters(model)
    with torch.no_grad():
        for name in {n for d in drafts for n in d.plan.trained}:
            structure.keep(parameters[name])
            parameters[name].copy_(values[name])
