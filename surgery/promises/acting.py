"""Promises that no graft is silent: each moves the output, and each parameter has a gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.planning.edit import Edit
from surgery.promises.running import modes, relative_error, same_bits, seeded
from surgery.promises.trial import Trial
from surgery.promises.verdicts import Finding, Verdict, not_promised
from surgery.reports.figures import families, shortened, some


@dataclass(frozen=True)
class EditFamily:
    """Edits of one statement at sites that differ in their numbers only."""

    name: str
    edits: tuple[Edit, ...]


def groups_of(trial: Trial) -> Iterator[EditFamily]:
    """What is disturbed at once: the finest parts whose number does not grow with the depth."""
    for (_, child), edits in trial.statements.items():
        by_site = {e.site.name: e for e in edits}
        for family in families(by_site):
            idle = set(trial.plan.idle)
            held = tuple(by_site[site] for site in family.members if site not in idle)
            yield EditFamily(f"`{child}` at {family.pattern or 'the model'}", held)


def every_part_acts(trial: Trial) -> Verdict:
    """Disturb one part at a time: with and without gradients, in training and evaluation."""
    promise = "every part acts"
    groups = [g for g in groups_of(trial) if trial.parameters_of(g.edits)]
    if not groups:
        return not_promised(promise, "nothing was added")
    finding = Finding(promise)
    start = trial.snapshot()
    least, where = float("inf"), ""
    ways = list(itertools.product((False, True), (False, True)))
    before = {way: trial.run(train=way[0], grad=way[1]) for way in ways}
    for group in groups:
        trial.disturb(_own(trial, group.edits), "canary")
        for way in ways:
            after = trial.run(train=way[0], grad=way[1])
            silent = same_bits(after, before[way])
            finding.require(not silent, f"changing {group.name} changes nothing in {_named(*way)}")
            effect = relative_error(after, before[way])
            if not silent and effect < least:
                least, where = effect, group.name
        trial.put(start)
    text = f"{some(len(groups), 'part')} in 4 modes; the least moves the output by {least:.1e}"
    return finding.verdict(f"{text} ({where})")


def _own(trial: Trial, edits: Iterable[Edit]) -> dict[str, nn.Parameter]:
    """The parameters of some edits; those that others share only if there is nothing else."""
    shared = {t.name for e in edits for t in e.tensors if t.shared}
    found = trial.parameters_of(edits)
    return {n: p for n, p in found.items() if n not in shared} or found


def _named(train: bool, grad: bool) -> str:
    return f"{'training' if train else 'evaluation'} {'with' if grad else 'without'} gradients"


def gradients_reach(trial: Trial) -> Verdict:
    """Every new parameter that trains gets a finite gradient that is not all zeros."""
    promise = "gradients reach all"
    trained = {n: p for n, p in trial.parameters.items() if p.requires_grad}
    own = {n: p for n, p in trial.model.named_parameters() if n in set(trial.plan.trained)}
    if not trained and not own:
        return not_promised(promise, "no added parameter is trainable")
    finding = Finding(promise)
    gradients = _gradients(trial, {**trained, **own})
    idle = {t.name for e in trial.plan.edits if e.site.name in trial.plan.idle for t in e.tensors}
    silent = [n for n in trained if not _reached(gradients[n]) and n not in idle]
    missed = _passed_by(trial, silent)
    for name in silent:
        if name not in missed:
            how = "no gradient" if gradients[name] is None else "a gradient of zeros"
            finding.require(False, f"`{name}` gets {how}")
    for name in (*trained, *own):
        gradient = gradients[name]
        finite = gradient is None or bool(torch.isfinite(gradient).all())
        finding.require(finite, f"the gradient of `{name}` is not finite")
    sizes = {n: float(g.abs().max()) for n in trained if (g := gradients[n]) is not None}
    reached = {n: size for n, size in sizes.items() if size > 0}
    if missed:
        shown = shortened(missed)
        finding.remarks.append(f"not reached by these inputs, as their kind is: {shown}")
    if idle:
        shown = shortened(sorted(idle))
        finding.remarks.append(f"without a part in the result, as the plan warns: {shown}")
    still = [n for n in own if not _reached(gradients[n])]
    if still:
        shown = shortened(still)
        finding.remarks.append(f"of the base's own, without an effect on these outputs: {shown}")
    text = f"{len(reached)} of {some(len(trained), 'new parameter')}" if trained else ""
    if reached:
        least = min(reached, key=reached.__getitem__)
        text += f"; the least is {reached[least]:.1e} ({least})"
    if own:
        text += f"{', and ' if text else ''}{len(own) - len(still)} of {len(own)} of the base's own"
    return finding.verdict(text)


def _reached(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def _gradients(trial: Trial, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """The gradients of a random projection of all that the model returns, in training mode."""
    generator = torch.Generator().manual_seed(trial.seed)
    with modes(trial.model, True), torch.enable_grad(), seeded(trial.seed):
        loss = torch.zeros(())
        for leaf in trial.run.forward():
            if leaf.requires_grad:
                weights = torch.randn(leaf.shape, generator=generator).to(leaf.device)
                # In float64: thousands of half-precision values would overflow.
                loss = loss + (leaf.double() * weights).sum().to(loss.device)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def _passed_by(trial: Trial, names: list[str]) -> set[str]:
    """Those of ``names`` whose module no run went through, though it did through its like.

    A router sends a few inputs to a few experts; a graft that nothing of its kind runs is silent.
    """
    if not names:
        return set()
    paths = {t.name: _runs_at(e) for e in trial.plan.edits for t in e.tensors}
    called: set[str] = set()
    handles = [
        trial.model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: called.add(path)  # type: ignore[misc]
        )
        for path in set(paths.values())
    ]
    try:
        trial.run(train=True)
    finally:
        for handle in handles:
            handle.remove()
    run_families = {
        member
        for family in families(dict.fromkeys(paths.values()))
        if called.intersection(family.members)
        for member in family.members
    }
    return {n for n in names if paths[n] not in called and paths[n] in run_families}


def _runs_at(edit: Edit) -> str:
    """The module that runs where ``edit`` acts: of a layer that is read, the one around it."""
    read = edit.layer is not None and edit.layer.read and edit.site.whole == edit.owner
    return edit.owner.rpartition(".")[0] if read else edit.owner
