"""The promises that this package makes, tried with one spec on one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.api import SpecLike
from surgery.graft.apply import apply_spec
from surgery.graft.state import surgery_of
from surgery.graft.target import adapted_of
from surgery.language.diagnostics import error
from surgery.planning.plan import Plan
from surgery.planning.spec import Spec, read_spec
from surgery.promises.acting import every_part_acts, gradients_reach
from surgery.promises.keeping import kept
from surgery.promises.lasting import removal_is_exact, saved_is_loaded, seed_decides
from surgery.promises.merging import leaving_undoes, merged_is_adapted
from surgery.promises.running import Runner, runner
from surgery.promises.starting import failed, flags_hold, names_stay, starts_as_base
from surgery.promises.trial import Trial, base_of, tolerance_of
from surgery.promises.verdicts import SIGNS, Verdict
from surgery.reports.data import VERSION, warned
from surgery.reports.figures import aligned, some
from surgery.reports.report import Report

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def verify(
    model: nn.Module | ExportedProgram,
    spec: SpecLike,
    *,
    example_inputs: Any = None,
    seed: int = 0,
    tokenizer: Any = None,
    tolerance: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Check every guarantee for ``spec`` on ``model``, then restore the model.

    The spec is applied in place and removed, also if something fails. Only buffers and the base
    parameters that the spec trains are copied.

    Args:
        model: a base model, not adapted.
        spec: the spec.
        example_inputs: as for :func:`surgery.apply`; generated if None.
        seed: random seed of all values that are drawn.
        tokenizer: the tokenizer of the model, where a prompt starts from text.
        tolerance: maximum merge error, relative to the largest output value; if None, it depends on
            the dtype of the parameters (1e-4 in float32).
        progress: called with the name of the next check.

    Returns:
        The outcome of each guarantee. One that failed is not raised.

    Raises:
        SurgeryError: as :func:`surgery.apply` would; S502 if the model does not run, S518 if it is
            adapted already.

    >>> import torch, surgery
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> surgery.verify(model, "on Linear apply lora(r = 2)").ok
    True

    """
    model = adapted_of(model)
    if surgery_of(model) is not None:
        raise error(
            "S518",
            "this model is already adapted, and `verify` needs a base model",
            help="call `surgery.remove` first, or verify before applying",
        )
    ready = read_spec(spec)
    say: Callable[[str], object] = progress or str
    say("running the base")
    run = runner(model, example_inputs, seed)
    with kept(model):
        options = {"example_inputs": example_inputs, "seed": seed, "tokenizer": tokenizer}
        return _tried(run, ready, options, tolerance, say)


def _tried(
    run: Runner,
    spec: Spec,
    options: Mapping[str, Any],
    tolerance: float | None,
    say: Callable[[str], object],
) -> Verification:
    base = base_of(run)
    allowed = tolerance_of(run.model) if tolerance is None else tolerance
    say("applying")
    plan = apply_spec(run.model, spec, **options)
    trial = Trial(run, base, plan, run.seed, allowed, options)
    start = trial.snapshot()
    verdicts: list[Verdict] = []

    def attempt(promise: str, trying: Callable[[], Verdict]) -> None:
        say(f"trying: {promise}")
        if surgery_of(run.model) is None:
            trial.apply()
        try:
            verdicts.append(trying())
        except Exception as problem:
            verdicts.append(failed(promise, problem))

    attempt("identity at init", lambda: starts_as_base(trial))
    attempt("names stay", lambda: names_stay(trial))
    attempt("trainable as planned", lambda: flags_hold(trial))
    attempt("every part acts", lambda: every_part_acts(trial))
    trial.disturb(trial.moving, "all")
    attempt("gradients reach all", lambda: gradients_reach(trial))
    if plan.edits:
        attempt("merged = adapted", lambda: merged_is_adapted(trial))
    attempt("contexts restore", lambda: leaving_undoes(trial))
    attempt("saved = loaded", lambda: saved_is_loaded(trial))
    if plan.tensors:
        attempt("same seed, same values", lambda: seed_decides(trial, start))
    attempt("removal is exact", lambda: removal_is_exact(trial))
    return Verification(type(run.model).__name__, run.shape, allowed, plan, tuple(verdicts))


@dataclass(frozen=True)
class Verification(Report):
    """What became of each promise."""

    model: str
    inputs: str
    tolerance: float
    plan: Plan
    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether none is broken."""
        return all(v.outcome != "broken" for v in self.verdicts)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        added = some(len(self.plan.distinct), "new parameter")
        sites = some(len({e.site.name for e in self.plan.edits}), "site")
        head = f"{self.plan.spec.name} on {self.model}: {sites}, {added}; inputs {self.inputs}"
        rows = [(SIGNS[v.outcome], v.promise, v.text) for v in self.verdicts]
        lines = [head, ""]
        for line, verdict in zip(aligned(rows, gap=2), self.verdicts, strict=True):
            lines += [line, *(f"          {detail}" for detail in verdict.details)]
        return "\n".join([*lines, "", self.summary])

    @property
    def summary(self) -> str:
        """The last line."""
        broken = [v.promise for v in self.verdicts if v.outcome == "broken"]
        if broken:
            return f"Failed: {', '.join(broken)}."
        held = sum(v.outcome == "held" for v in self.verdicts)
        silent = len(self.verdicts) - held
        more = f", {silent} not applicable" if silent else ""
        worst = max((v.error for v in self.verdicts if v.error is not None), default=0.0)
        error = (
            f"The largest error is {worst:.1e}." if worst else "No numerical difference was found."
        )
        return f"All {held} guarantees hold{more}. {error}"

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "version": VERSION,
            "ok": self.ok,
            "model": self.model,
            "spec": self.plan.spec.name,
            "fingerprint": self.plan.fingerprint,
            "inputs": self.inputs,
            "tolerance": self.tolerance,
            "promises": [v.as_dict() for v in self.verdicts],
            "summary": self.summary,
            "warnings": warned(self.plan.warnings),
        }
