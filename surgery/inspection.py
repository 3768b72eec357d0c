"""A model as the language sees it: its tree with roles, what a selector matches, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.select import select
from surgery.anatomy.site import Site
from surgery.api import SpecLike
from surgery.graft.hosts import detached
from surgery.graft.target import model_of
from surgery.language.diagnostics import Diagnostic, render
from surgery.planning.spec import read_spec
from surgery.reports.data import VERSION, warned
from surgery.reports.drawing import Drawing
from surgery.reports.explanation import Explanation, explanation_of
from surgery.reports.figures import aligned, quoted, some
from surgery.reports.marks import marks_of_matches
from surgery.reports.matches import SiteFamily, matches_of
from surgery.reports.report import DrawnReport
from surgery.reports.subject import Subject, read_if_it_runs
from surgery.reports.tree import Branch, rows_of, tree_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def inspect(
    model: nn.Module | ExportedProgram, selector: str | None = None, *, example_inputs: Any = None
) -> Inspection:
    """Return the module tree of ``model`` with roles, or the modules that ``selector`` matches.

    If the model does not run on generated inputs, roles are left out and a warning says why.

    Raises:
        SurgeryError: S1xx if the selector cannot be read, S3xx if a part of it matches nothing.

    >>> import torch, surgery
    >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> print(surgery.inspect(model, "up|down"))
    linear1   Linear 8 → 16   up     144
    linear2   Linear 16 → 8   down   136
    2 sites match `up|down`.

    """
    model = model_of(model)
    subject = Subject(model, example_inputs)
    with detached(model):
        if selector is not None:
            chosen = select(model, selector, lambda: read(model, example_inputs))
            matches = matches_of(model, chosen.sites)
            return Inspection(
                selector, None, tuple(matches), chosen.warnings, subject, tuple(chosen.sites)
            )
        known, problem = read_if_it_runs(model, example_inputs)
        tree = tree_of(model, known.roles_of if known else lambda _: (), _apart(known))
        return Inspection(None, tree, (), problem, subject)


@dataclass(frozen=True)
class Inspection(DrawnReport):
    """What was found; ``tree`` without a selector, ``matches`` with one."""

    selector: str | None
    tree: Branch | None
    matches: tuple[SiteFamily, ...]
    warnings: tuple[Diagnostic, ...]
    subject: Subject = field(repr=False, compare=False)
    sites: tuple[Site, ...] = ()

    def __str__(self) -> str:
        warnings = [render(w) for w in self.warnings]
        if self.tree is not None:
            lines = aligned(list(rows_of(self.tree)), widest=48)
            return "\n".join([*lines, *([""] if warnings else []), *warnings])
        lines = aligned([match.row for match in self.matches], widest=56)
        count = sum(len(match.sites) for match in self.matches)
        verb = "matches" if count == 1 else "match"
        return "\n".join(
            [*lines, *warnings, f"{some(count, 'site')} {verb} {quoted(self.selector or '')}."]
        )

    @property
    def drawing(self) -> Drawing:
        """The model as nested boxes and arrows, which the forms below write down."""
        if self.selector is None:
            return self.subject.drawing((), ())
        said = str(self).splitlines()[-1]
        marks = marks_of_matches([s.path for s in self.sites], quoted(self.selector))
        return self.subject.drawing((said,), [w.message for w in self.warnings], self.sites, marks)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "version": VERSION,
            "selector": self.selector,
            "tree": self.tree and self.tree.as_dict(),
            "matches": [match.as_dict() for match in self.matches],
            "warnings": warned(self.warnings),
        }


def explain(
    model: nn.Module | ExportedProgram, site: str, spec: SpecLike, *, example_inputs: Any = None
) -> Explanation:
    """For each statement of ``spec``, why it does or does not apply at ``site``.

    Args:
        model: any module.
        site: the path of a module, or of a region as :func:`surgery.diff` shows it.
        spec: the spec; it need not fit the model as a whole.
        example_inputs: as for :func:`surgery.apply`.

    Raises:
        SurgeryError: S305 if nothing in the model has that path.

    >>> import torch, surgery
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    >>> print(surgery.explain(model, "1", "on Linear apply lora(r = 2)"))
    1   ReLU
    <BLANKLINE>
    <spec>:1   on Linear apply lora(r = 2)
        no: `Linear` does not match it

    """
    return explanation_of(model_of(model), site, read_spec(spec), example_inputs)


def _apart(anatomy: Anatomy | None) -> list[Site]:
    """The regions and slices that have a role."""
    sites = [s for group in anatomy.places.values() for s in group] if anatomy else []
    return [site for site in sites if site.is_part]
