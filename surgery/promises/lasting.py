"""Promises about what lasts: files, seeds, and the base after all is removed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from surgery.graft.apply import remove_specs
from surgery.graft.load import load_adapter
from surgery.graft.save import save_adapter
from surgery.promises.keeping import checksums
from surgery.promises.running import same_bits
from surgery.promises.trial import Trial
from surgery.promises.verdicts import Finding, Verdict
from surgery.reports.figures import some


def saved_is_loaded(trial: Trial) -> Verdict:
    """What was saved, loaded onto the same base, gives the same bits."""
    finding = Finding("saved = loaded")
    adapted, values = trial.run(), trial.snapshot()
    with tempfile.TemporaryDirectory() as folder:
        path = save_adapter(trial.model, Path(folder))
        size = path.stat().st_size
        remove_specs(trial.model)
        load_adapter(trial.model, path, trial.options["example_inputs"])
    _compare(finding, trial.snapshot(), values, "loaded")
    same = same_bits(trial.run(), adapted) or not trial.base.repeats
    finding.require(same, "the output after loading differs")
    return finding.verdict(f"bitwise identical, {size:,} bytes")


def seed_decides(trial: Trial, start: dict[str, Tensor]) -> Verdict:
    """The same seed gives the same bits."""
    finding = Finding("same seed, same values")
    remove_specs(trial.model)
    trial.apply()
    _compare(finding, trial.snapshot(), start, "made again")
    return finding.verdict(some(len(trial.parameters), "new parameter"))


def removal_is_exact(trial: Trial) -> Verdict:
    """After removal every parameter, name, class and output is the base's."""
    finding = Finding("removal is exact")
    model, base = trial.model, trial.base
    remove_specs(model)
    now = checksums(model)
    changed = [name for name in base.sums if now.get(name) != base.sums[name]]
    finding.require(not changed, f"{some(len(changed), 'tensor')} changed, first {changed[:3]}")
    finding.require(tuple(model.state_dict()) == base.keys, "the keys of the state dict changed")
    for path, kind in base.classes.items():
        finding.require(type(model.get_submodule(path)) is kind, f"`{path}` has a different class")
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    finding.require(flags == base.flags, "the set of trainable parameters changed")
    if base.repeats:
        finding.require(same_bits(trial.run(), base.output), "the output differs")
    return finding.verdict(f"{some(len(now), 'tensor')} and the output: bitwise identical")


def _compare(
    finding: Finding, found: dict[str, Tensor], expected: dict[str, Tensor], how: str
) -> None:
    finding.require(found.keys() == expected.keys(), f"other parameters when {how}")
    for name in expected:
        same = name in found and same_bits(found[name], expected[name])
        finding.require(same, f"`{name}` is another when {how}")
