"""What a selector matched, folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.anatomy.paths import elements_of
from surgery.anatomy.site import BareParameter, LinearMap, OutputSlice, Region, Site
from surgery.reports.figures import dimensions, families, millions
from surgery.reports.tree import kind_of


@dataclass(frozen=True)
class SiteFamily:
    """Sites that read the same but for their numbers."""

    pattern: str
    sites: tuple[str, ...]
    kind: str
    role: str | None
    elements: int
    aliases: tuple[str, ...] = ()

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of its line."""
        times = f"{len(self.sites)} × " if len(self.sites) > 1 else ""
        tied = f"also {', '.join(self.aliases)}" if self.aliases else ""
        return (self.pattern, times + self.kind, self.role or "", millions(self.elements), tied)

    def as_dict(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern,
            "sites": list(self.sites),
            "kind": self.kind,
            "role": self.role,
            "elements": self.elements,
            "aliases": list(self.aliases),
        }


def matches_of(model: nn.Module, sites: Sequence[Site]) -> Iterator[SiteFamily]:
    """``sites`` folded; ``elements`` count those of one of them."""
    groups: dict[object, list[Site]] = {}
    for site in sites:
        kind, elements = describe(model, site)
        groups.setdefault((kind, site.role, elements), []).append(site)
    for (kind, role, elements), group in groups.items():  # type: ignore[misc]
        by_path = {s.path: s for s in group}
        for family in families(by_path):
            first = by_path[family.members[0]]
            aliases = tuple(p for p in first.paths if p != first.path)
            yield SiteFamily(family.pattern, family.members, str(kind), role, elements, aliases)  # type: ignore[arg-type]


def describe(model: nn.Module, site: Site) -> tuple[str, int]:
    """What a site is, and how many elements its parameters have."""
    match site.operator:
        case BareParameter():
            parameter = model.get_parameter(site.path)
            return f"parameter [{dimensions(parameter.shape)}]", parameter.numel()
        case LinearMap(layer):
            elements = layer.experts * layer.out * layer.into
            return f"{layer.experts} experts, linear {layer.into} → {layer.out}", elements
        case OutputSlice(rows):
            kind = f"slice, {rows.size} of {rows.total} outputs"
            return kind, elements_of(model.get_submodule(site.exit.path), rows)
        case _:
            modules = [model.get_submodule(path) for path in site.spans]
    found = {id(p): p.numel() for module in modules for p in module.parameters()}
    region = isinstance(site.operator, Region)
    kind = f"region of {len(modules)} modules" if region else kind_of(modules[0])
    return kind, sum(found.values())
