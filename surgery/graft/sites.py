"""The edits in force at each site, folded into one program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.site import Port, Site
from surgery.graft.state import Surgery
from surgery.planning.edit import Edit, by_site
from surgery.rules.expand import Wrapped
from surgery.rules.program import Program, build


@dataclass(frozen=True)
class SiteMethods:
    """The methods of one site, in order; those of a layer's slices are with the layer's.

    What one of them needs from elsewhere is there for the program of all.
    """

    edits: list[Edit]

    @property
    def first(self) -> Edit:
        """Any edit tells of the site itself; the first may have been planned with less known."""
        return self.edits[0]

    @cached_property
    def wraps(self) -> list[Wrapped]:
        """The methods, each with its place in the program of all."""
        return [edit.wrapped for edit in self.edits]

    @cached_property
    def program(self) -> Program:
        """What all of them make of the site."""
        return program_of(self.first, self.wraps)

    @cached_property
    def site(self) -> Site:
        """The site with the states as all of the methods ask for them."""
        known = [edit.site.states for edit in self.edits]
        states = replace(
            known[0],
            mask=self.mask,
            sequences=next((s.sequences for s in known if s.sequences), None),
            length_first=any(s.length_first for s in known),
        )
        return replace(self.first.site, states=states)

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


def program_of(edit: Edit, wraps: list[Wrapped]) -> Program:
    """The program of a site with these methods, given any edit planned for it."""
    return build(edit.signature, tuple(wraps))


def sites_of(surgery: Surgery) -> dict[str, SiteMethods]:
    """The methods of all edits in force, by site."""
    return {site: SiteMethods(edits) for site, edits in by_site(surgery.edits()).items()}
