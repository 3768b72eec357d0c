"""The model that a report is about, read once more when the report is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.site import Site
from surgery.graft.hosts import detached
from surgery.language.diagnostics import Diagnostic, SurgeryError, error
from surgery.reports.drawing import Drawing, drawing_of
from surgery.reports.marks import Marks


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the inputs that it is run on, in place of which None may stand."""

    model: nn.Module
    example_inputs: Any = None

    def __repr__(self) -> str:
        return f"Subject({type(self.model).__name__})"

    def drawing(
        self,
        facts: Iterable[str],
        remarks: Iterable[str],
        sites: Iterable[Site] = (),
        marks: Mapping[str, Marks] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Drawing:
        """Draw the base of the model, whatever is applied to it by now.

        Args:
            facts: lines above the drawing.
            remarks: lines below it.
            sites: what is shown even where it is no module.
            marks: what is marked, by path.
            shapes: those of the base's parameters when the report was made, by name.

        Raises:
            SurgeryError: S560 if the base has other parameters by now than ``shapes`` says.

        """
        name = type(self.model).__name__
        with detached(self.model):
            now = {n: tuple(p.shape) for n, p in self.model.named_parameters()}
            if shapes is not None and now != shapes:
                raise error(
                    "S560",
                    f"the {name} has other parameters than when this report was made",
                    help="make the report of the model as it is now",
                )
            anatomy, unread = read_if_it_runs(self.model, self.example_inputs)
            root = drawing_of(self.model, anatomy, sites, marks)
        said = [d.message for d in unread]
        return Drawing(name, root, tuple(facts), (*said, *remarks))


def read_if_it_runs(
    model: nn.Module, example_inputs: Any
) -> tuple[Anatomy | None, tuple[Diagnostic, ...]]:
    """The anatomy of ``model``, or a warning that says why it is not known."""
    try:
        anatomy = read(model, example_inputs)
        _ = anatomy.places
    except SurgeryError as problem:
        first = problem.diagnostics[0]
        message = f"the roles are not known: {first.message}"
        return None, (Diagnostic(first.code, message, first.labels, first.help, "warning"),)
    return anatomy, ()
