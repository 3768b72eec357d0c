"""The edits in force at each site, folded into one program."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.site import Port
from surgery.graft.state import Surgery
from surgery.planning.edit import Edit
from surgery.rules.expand import Wrapped
from surgery.rules.program import Program, build


@dataclass
class SiteMethods:
    """The methods of one site, in order; those of a layer's slices are with the layer's.

    What one of them needs from elsewhere is there for the program of all.
    """

    edits: list[Edit] = field(default_factory=list[Edit])
    wraps: list[Wrapped] = field(default_factory=list[Wrapped])

    @property
    def first(self) -> Edit:
        """Any edit tells of the site itself; the first may have been planned with less known."""
        return self.edits[0]

    @property
    def program(self) -> Program:
        return program_of(self.first, self.wraps)

    @property
    def is_own(self) -> bool:
        """Whether the site is one module, not a region that ends at it."""
        site = self.first.site
        return site.whole == site.exit.path

    @property
    def core(self) -> AttentionCore | None:
        return next((e.core for e in self.edits if e.core), None)

    @property
    def core_owner(self) -> str:
        """The module that has the parameters of what is done to the core."""
        return next(e.owner for e in self.edits if e.core)

    @property
    def residual(self) -> Port | None:
        return next((e.residual for e in self.edits if e.residual), None)

    @property
    def norm(self) -> str | None:
        return next((e.norm for e in self.edits if e.norm), None)

    @property
    def mask(self) -> Port | None:
        return next((m for e in self.edits if (m := e.site.states.mask)), None)

    @property
    def sequences(self) -> Port | None:
        return next((s for e in self.edits if (s := e.site.states.sequences)), None)

    @property
    def length_first(self) -> bool:
        return any(e.site.states.length_first for e in self.edits)


def program_of(edit: Edit, wraps: list[Wrapped]) -> Program:
    """The program of a site with these methods, given any edit planned for it."""
    return build(edit.signature, tuple(wraps))


def sites_of(surgery: Surgery) -> dict[str, SiteMethods]:
    """The methods of all edits in force, by site."""
    sites: dict[str, SiteMethods] = {}
    for edit in surgery.edits():
        methods = sites.setdefault(edit.site.whole, SiteMethods())
        methods.edits.append(edit)
        methods.wraps.append(edit.wrapped)
    return sites
