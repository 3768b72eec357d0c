"""The edits in force at each site, folded into one program."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgery.graft.state import Surgery
from surgery.planning.plan import Edit
from surgery.rules.expand import Wrapped
from surgery.rules.program import Program, build


@dataclass
class Site:
    """The edits of one site, in order; those of a layer's slices are with the layer's."""

    edits: list[Edit] = field(default_factory=list[Edit])
    wraps: list[Wrapped] = field(default_factory=list[Wrapped])

    @property
    def program(self) -> Program:
        return program_of(self.edits[0], self.wraps)

    @property
    def is_own(self) -> bool:
        """Whether the site is one module, not a region that ends at it."""
        return self.edits[0].whole == self.edits[0].exit.path


def program_of(edit: Edit, wraps: list[Wrapped]) -> Program:
    """The program of a site with these methods, given any edit planned for it."""
    return build(edit.signature, tuple(wraps))


def sites_of(surgery: Surgery) -> dict[str, Site]:
    """The sites of all edits in force, by site path."""
    sites: dict[str, Site] = {}
    for applied, edit in surgery.edits():
        site = sites.setdefault(edit.whole, Site())
        site.edits.append(edit)
        site.wraps.append(applied.wrapped(edit))
    return sites
