"""Why a selector takes a site or leaves it: the part that matches, or the clause that drops it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from surgery.anatomy.read import Anatomy
from surgery.anatomy.select import Things, select
from surgery.anatomy.site import Site
from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError
from surgery.reports.figures import quoted


@dataclass(frozen=True)
class Reason:
    """Whether a site is selected, why, and as which sites (several parameters of one module)."""

    holds: bool
    text: str
    sites: tuple[Site, ...] = ()


@dataclass
class Reasoner:
    """Reads selectors at one place; ``within`` says which of the found sites are that place."""

    model: nn.Module
    anatomy: Callable[[], Anatomy]
    within: Callable[[Site], bool]

    def why(self, selector: syntax.Selector, of: Things = "modules") -> Reason:
        """The first thing that decides."""
        parts, problem = self.parts(selector, of)
        if not parts:
            text = f"{quoted(selector.union.span.text)} does not match it"
            return Reason(False, problem or text)
        names = " and ".join(quoted(part.span.text) for part in parts)
        verb = "match" if len(parts) > 1 else "matches"
        bare = replace(selector, within=None, where=None, exceptions=None, expect=None)
        for name, word in (("within", "in"), ("where", "where"), ("exceptions", "except")):
            node = getattr(selector, name)
            if node is None:
                continue
            bare = replace(bare, **{name: node})
            if not self.found(bare, of)[0]:
                clause = quoted(f"{word} {node.span.text}")
                return Reason(False, f"{names} {verb} it, but {clause} drops it")
        sites, problem = self.found(selector, of)
        if problem:
            return Reason(False, problem)
        return Reason(True, f"{names} {verb} it", tuple(sites))

    def parts(self, selector: syntax.Selector, of: Things) -> tuple[list[syntax.Node], str | None]:
        """The parts of the union that match here, or why none could be read."""
        matching: list[syntax.Node] = []
        problem = None
        for part in selector.union.parts:
            alone = syntax.Selector(syntax.Union((part,), span=part.span), span=part.span)
            sites, fault = self.found(alone, of)
            problem = problem or fault
            if sites:
                matching.append(part)
        return matching, problem

    def found(self, selector: syntax.Selector, of: Things) -> tuple[Sequence[Site], str | None]:
        """The sites of ``selector`` here, and what is wrong with it anywhere."""
        try:
            chosen = select(self.model, selector, self.anatomy, of=of)
        except SurgeryError as fault:
            first = fault.diagnostics[0]
            place = f" ({first.labels[0].span})" if first.labels else ""
            return (), f"{first.message}{place}"
        return [s for s in chosen.sites if self.within(s)], None
