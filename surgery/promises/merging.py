"""Promises about merging: it computes the same, and leaving it gives back the very bits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgery.graft.apply import disabled_specs
from surgery.graft.container import find_graft
from surgery.graft.merge import merged_specs
from surgery.planning.edit import Edit
from surgery.promises.keeping import checksums
from surgery.promises.running import copied, relative_error, same_bits
from surgery.promises.trial import Trial
from surgery.promises.verdicts import Finding, Verdict, not_promised
from surgery.reports.figures import shortened, some


@dataclass
class Seen:
    """One call of a module: what it took and gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def merged_is_adapted(trial: Trial) -> Verdict:
    """The merged model against the adapted one: as a whole, and each layer on its own input."""
    promise = "merged = adapted"
    adapted = trial.run()
    with _watching(trial.model, _layers(trial)) as seen:
        trial.run()
    finding = Finding(promise)
    worst = ""
    with merged_specs(trial.model):
        stayed = [e for e in trial.plan.edits if _stands(trial.model, e)]
        whole = relative_error(trial.run(), adapted)
        # A region's last layer runs what stays at the region, which cannot run by itself.
        behind = {path for e in stayed for path in (e.site.whole, e.site.exit.path)}
        seen = {path: call for path, call in seen.items() if path not in behind}
        for path, call in seen.items():
            error = _again(trial.model.get_submodule(path), call)
            if finding.worst(error):
                worst = path
            finding.require(error <= trial.tolerance, f"`{path}` differs by {error:.1e}")
    why = _reasons(stayed)
    merged = len(trial.plan.edits) - len(stayed)
    for edit in stayed:
        finding.require(
            not edit.derived.merges,
            f"`{edit.method.child}` at `{edit.site.name}` was not merged, although it can be",
        )
    finding.remarks += why
    if not merged and not finding.faults:
        return not_promised(promise, "nothing can be merged", *why)
    finding.require(whole <= trial.tolerance, f"the output differs by {whole:.1e} of its size")
    effect = relative_error(adapted, trial.base.output)
    if effect < trial.tolerance:
        finding.remarks.append(f"weak: what was merged moves the output by {effect:.1e} only")
    text = f"{merged} of {some(len(trial.plan.edits), 'edit')}; the output differs by {whole:.1e}"
    if seen:
        text += f", a layer by at most {finding.error or 0.0:.1e} ({worst})"
    finding.worst(whole)
    return finding.verdict(text)


def leaving_undoes(trial: Trial) -> Verdict:
    """After `merged` and `disabled` every bit is as before; inside `disabled` the base runs."""
    finding = Finding("contexts restore")
    model = trial.model
    adapted, sums = trial.run(), checksums(model)
    for name, context in (("merged", merged_specs), ("disabled", disabled_specs)):
        with context(model):
            inside = trial.run()
        if name == "disabled" and trial.base.repeats:
            same = same_bits(inside, trial.base.output)
            finding.require(same, "the disabled model does not give the base's output")
        now = checksums(model)
        changed = [n for n in sums if now.get(n) != sums[n]]
        finding.require(not changed, f"leaving `{name}` changed {changed[:3]}")
        finding.require(now.keys() == sums.keys(), f"leaving `{name}` changed the names")
        same = same_bits(trial.run(), adapted) or not trial.base.repeats
        finding.require(same, f"the output after leaving `{name}` differs")
    return finding.verdict(
        f"`merged` and `disabled`: bitwise identical, {some(len(sums), 'tensor')}"
    )


def _layers(trial: Trial) -> list[str]:
    """The layers that compute what is grafted on them when they are called themselves."""
    if isinstance(trial.model, fx.GraphModule):
        return []
    return [
        e.site.whole
        for e in {e.site.whole: e for e in trial.plan.edits}.values()
        if e.signature.kind == "linear" and e.layer is not None and not e.layer.read
    ]


def _stands(model: nn.Module, edit: Edit) -> bool:
    return find_graft(model.get_submodule(edit.owner), edit.graft) is not None


def _reasons(stayed: list[Edit]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for edit in stayed:
        reason = edit.derived.unmerged or "it follows a method that cannot be merged"
        groups.setdefault(f"`{edit.method.child}`: {reason}", []).append(edit.site.name)
    return [f"stays at {shortened(sites)}, {reason}" for reason, sites in groups.items()]


@contextmanager
def _watching(model: nn.Module, paths: list[str]) -> Generator[dict[str, Seen]]:
    seen: dict[str, Seen] = {}
    handles: list[Any] = []

    def watch(path: str) -> None:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if path not in seen:
                args, kwargs = copied((args, kwargs))
                # A copy: what follows may write to it.
                (kept,), _ = copied(((output,), {}))
                seen[path] = Seen(args, kwargs, kept)

        module = model.get_submodule(path)
        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    try:
        for path in paths:
            watch(path)
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _again(module: nn.Module, call: Seen) -> float:
    training = module.training
    module.__dict__["training"] = False
    try:
        output = module(*call.args, **call.kwargs)
    finally:
        module.__dict__["training"] = training
    if not isinstance(output, Tensor) or not isinstance(call.output, Tensor):
        return 0.0
    return relative_error(output, call.output)
