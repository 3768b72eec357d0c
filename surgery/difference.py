"""What a spec would change in a model, shown before anything changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from surgery.api import SpecLike, plan
from surgery.graft.target import model_of
from surgery.planning.plan import Plan
from surgery.reports.comparison import moves
from surgery.reports.comparison_text import Compared, training_changes
from surgery.reports.context import ModelContext, context_of
from surgery.reports.data import VERSION, warned
from surgery.reports.diff_markdown import markdown_of
from surgery.reports.diff_text import closing, notes_of, text_of, warning_text
from surgery.reports.drawing import Drawing
from surgery.reports.entries import Entry, entries_of
from surgery.reports.marks import marks_of_comparison, marks_of_plan
from surgery.reports.report import DrawnReport
from surgery.reports.subject import Subject
from surgery.reports.summary import Summary, summary_of
from surgery.reports.training import Parameters, shape_of, training_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@overload
def diff(
    model: nn.Module | ExportedProgram,
    spec: SpecLike,
    *,
    against: None = None,
    example_inputs: Any = None,
) -> Diff: ...


@overload
def diff(
    model: nn.Module | ExportedProgram,
    spec: SpecLike,
    *,
    against: SpecLike,
    example_inputs: Any = None,
) -> Comparison: ...


@overload
def diff(
    model: nn.Module | ExportedProgram,
    spec: SpecLike,
    *,
    against: SpecLike | None,
    example_inputs: Any = None,
) -> Diff | Comparison: ...


def diff(
    model: nn.Module | ExportedProgram,
    spec: SpecLike,
    *,
    against: SpecLike | None = None,
    example_inputs: Any = None,
) -> Diff | Comparison:
    """Return what ``spec`` would change in ``model``, which is unchanged.

    Args:
        model: any module; it may be adapted already.
        spec: the spec.
        against: a second spec; the report is what changes from ``spec`` to it.
        example_inputs: as for :func:`surgery.apply`.

    Raises:
        SurgeryError: as :func:`surgery.apply` would.

    >>> import torch, surgery
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> print(surgery.diff(model, "on `0` apply ia3"))
    ~ 0   linear 64 → 64   <spec>:1
        + l   64   1
        y = l * y          ia3
    <BLANKLINE>
      freeze 2 base parameters (4,160)
    <BLANKLINE>
    Cost: +64 FLOPs per token (+0.78 % of the base model's matrix products). Identity at initialization.
    Plan: 1 site changed, 1 tensor added (64 parameters; 1.52 % of all parameters trainable). All can be merged.

    """
    model = model_of(model)
    context = context_of(model)
    subject = Subject(model, example_inputs)
    first = plan(model, spec, example_inputs=example_inputs)
    if against is None:
        return Diff(first, context, subject)
    second = plan(model, against, example_inputs=example_inputs)
    return Comparison(first, second, context, subject)


@dataclass(frozen=True)
class Diff(DrawnReport):
    """A plan as a report: ``str()``, in colour by rich, or in one of the forms below."""

    plan: Plan
    context: ModelContext = field(repr=False)
    subject: Subject = field(repr=False, compare=False)

    @cached_property
    def entries(self) -> list[Entry]:
        """The edits, those that read the same folded into one."""
        return entries_of(self.plan, self.context.standing)

    @cached_property
    def training(self) -> tuple[Parameters, Parameters]:
        """The base's parameters that would train, and those that would be frozen."""
        return training_of(self.plan, self.context)

    @cached_property
    def summary(self) -> Summary:
        """The figures of the last line."""
        return summary_of(self.plan, self.context)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return self.summary.is_empty

    def __str__(self) -> str:
        return text_of(self.plan, self.context, self.entries, self.training, self.summary)

    def as_markdown(self) -> str:
        """For the description of a pull request: a table, with the details folded away."""
        return markdown_of(self.plan, self.context, self.entries, self.training, self.summary)

    @property
    def drawing(self) -> Drawing:
        """The changed model as nested boxes and arrows, which the forms below write down."""
        sites = [edit.site for edit in self.plan.edits]
        marks = marks_of_plan(self.plan, self.context, self.entries)
        notes = notes_of(self.plan, self.context, self.entries)
        remarks = [*notes, *map(warning_text, self.plan.warnings)]
        facts = [f"{self.plan.spec.name}", *closing(self.summary)]
        return self.subject.drawing(facts, remarks, sites, marks, _shapes(self.plan))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        trained, frozen = self.training
        return {
            "version": VERSION,
            "model": self.context.model,
            "spec": self.plan.spec.name,
            "base": self.plan.base,
            "fingerprint": self.plan.fingerprint,
            "summary": self.summary.as_dict(),
            "entries": [_entry(entry) for entry in self.entries],
            "train": asdict(trained),
            "freeze": asdict(frozen),
            "notes": notes_of(self.plan, self.context, self.entries),
            "warnings": warned(self.plan.warnings),
        }


@dataclass(frozen=True)
class Comparison(DrawnReport):
    """What changes in a model when the spec of ``before`` gives way to that of ``after``."""

    before: Plan
    after: Plan
    context: ModelContext = field(repr=False)
    subject: Subject = field(repr=False, compare=False)

    @cached_property
    def compared(self) -> Compared:
        """The differences."""
        return Compared(
            moves(self.before, self.after),
            training_changes(self.before, self.after, self.context.flags),
            summary_of(self.before, self.context),
            summary_of(self.after, self.context),
        )

    @property
    def is_empty(self) -> bool:
        """Whether both specs do the same."""
        return self.compared.is_empty

    def __str__(self) -> str:
        return self.compared.text()

    def as_markdown(self) -> str:
        """For the description of a pull request."""
        return self.compared.markdown()

    @property
    def drawing(self) -> Drawing:
        """The model as nested boxes and arrows, with what differs."""
        sites = [site for moved in self.compared.moved for site in moved.at]
        marks = marks_of_comparison(self.compared, self.context)
        names = dict.fromkeys((self.before.spec.name, self.after.spec.name))
        facts = [" → ".join(names), self.compared.summary]
        return self.subject.drawing(facts, (), sites, marks, _shapes(self.before))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        specs = {"before": self.before.spec.name, "after": self.after.spec.name}
        return {"version": VERSION, "specs": specs, **self.compared.as_dict()}


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {name: shape_of(plan, name) for name in plan.digests}


def _entry(entry: Entry) -> dict[str, Any]:
    first = entry.first
    return {
        "sites": list(entry.sites),
        "kind": entry.kind,
        "method": first.method.text,
        "name": first.method.child,
        "place": first.method.place,
        "formula": entry.formula,
        "adds": [{**asdict(t), "shared": t.shared is not None} for t in entry.added],
        "identity": first.derived.identity,
        "merges": first.derived.merges,
        "reason": entry.reason,
        "flops": first.derived.flops,
    }
