"""Promises about the moment after a spec is applied: the same outputs, the same names."""

from __future__ import annotations

from typing import Any

from surgery.language.diagnostics import SurgeryError
from surgery.promises.running import relative_error, same_bits
from surgery.promises.trial import Trial
from surgery.promises.verdicts import Finding, Verdict, not_promised
from surgery.reports.figures import families, some

ROUNDING = 0.1
"""What rounding may take of the tolerance for merges where the algebra says that all is equal."""


def starts_as_base(trial: Trial) -> Verdict:
    """Where every rule starts as the identity, the adapted model's output is the base's."""
    promise = "identity at init"
    last = {e.site.whole: e for e in trial.plan.edits}
    away = [e for e in last.values() if not e.derived.identity]
    output = trial.run()
    if away:
        sites = [str(family) for family in families(e.site.name for e in away)]
        return not_promised(
            promise,
            f"the rules {'may ' * all(e.derived.open for e in away)}change the output at "
            f"initialization at {', '.join(sites[:4])}",
        )
    finding = Finding(promise)
    error = relative_error(output, trial.base.output)
    finding.worst(error)
    exact = same_bits(output, trial.base.output)
    finding.require(
        error <= trial.tolerance * ROUNDING, f"the output differs by {error:.1e} of its size"
    )
    return finding.verdict("bitwise identical" if exact else f"up to rounding, {error:.1e}")


def names_stay(trial: Trial) -> Verdict:
    """The base's keys are all there, it loads its own checkpoint, and classes hold."""
    finding = Finding("names stay")
    model, base = trial.model, trial.base
    state = model.state_dict()
    lost = [key for key in base.keys if key not in state]
    finding.require(not lost, f"{some(len(lost), 'key')} of the base lost, first {lost[:1]}")
    checkpoint = {key: state[key] for key in base.keys if key in state}
    added = {t.name for t in trial.plan.tensors}
    result: Any = model.load_state_dict(checkpoint, strict=False)
    missing: list[str] = result.missing_keys
    extra = [key for key in missing if key not in added]
    finding.require(not extra, f"a base checkpoint lacks {extra[:3]}")
    wrong: list[str] = result.unexpected_keys
    finding.require(not wrong, f"a base checkpoint has unexpected keys {wrong[:3]}")
    for path, kind in base.classes.items():
        if not isinstance(model.get_submodule(path), kind):
            finding.require(False, f"`{path}` is no longer a {kind.__name__}")
    text = f"{some(len(base.keys), 'key')} of the base, and its checkpoint loads"
    return finding.verdict(text)


def flags_hold(trial: Trial) -> Verdict:
    """What trains is what the plan says, and nothing else."""
    finding = Finding("trainable as planned")
    parameters = dict(trial.model.named_parameters())
    added = trial.parameters
    wanted = {t.name for t in trial.plan.tensors if t.trained}
    decided = {*trial.plan.trained, *trial.plan.frozen}
    for name, parameter in parameters.items():
        if name in added or name in wanted:
            right = parameter.requires_grad == (name in wanted)
        elif name in decided:
            right = parameter.requires_grad == (name in trial.plan.trained)
        else:
            right = parameter.requires_grad == trial.base.flags.get(name)
        finding.require(right, f"`{name}` {'trains' if parameter.requires_grad else 'is frozen'}")
    elements = sum(p.numel() for p in parameters.values() if p.requires_grad)
    finding.require(
        elements == trial.plan.trainable,
        f"{elements:,} elements are trainable, but the plan says {trial.plan.trainable:,}",
    )
    return finding.verdict(f"{elements:,} trainable elements, as planned")


def failed(promise: str, problem: Exception) -> Verdict:
    """A promise that could not even be tried."""
    if isinstance(problem, SurgeryError):
        text = problem.diagnostics[0].message
    else:
        text = f"{type(problem).__name__}: {problem}".partition("\n")[0]
    return Verdict(promise, "broken", text)
