"""Operations on sets of sites: what lies inside what, and slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from surgery.anatomy.site import OutputSlice, Region, Site
from surgery.language import syntax


def inside(sites: Sequence[Site], places: Iterable[Site]) -> tuple[Site, ...]:
    """The sites that are one of ``places`` or lie within one, by any of their paths."""
    regions: set[str] = set()
    borders: set[str] = set()
    for place in places:
        if isinstance(place.operator, Region):
            regions.add(place.path)
            borders.update(place.spans)
        else:
            borders.update(place.paths)
    return tuple(
        site
        for site in sites
        if (
            site.path in regions or all(_below(member, borders) for member in site.spans)
            if isinstance(site.operator, Region)
            else any(_below(path, borders) for path in _places(site))
        )
    )


def slice_sites(
    sites: tuple[Site, ...],
    subscript: syntax.Slice | syntax.Index,
    stack_of: Callable[[Site], str | None] | None = None,
) -> tuple[Site, ...]:
    """The subscripted sites; each stack of layers (encoder, decoder) counts on its own."""
    if stack_of is None:
        return _sliced(sites, subscript)
    stacks: dict[str | None, list[Site]] = {}
    for site in sites:
        stacks.setdefault(stack_of(site), []).append(site)
    return tuple(site for stack in stacks.values() for site in _sliced(tuple(stack), subscript))


def _sliced(sites: tuple[Site, ...], subscript: syntax.Slice | syntax.Index) -> tuple[Site, ...]:
    if isinstance(subscript, syntax.Slice):
        start, stop = (_bound(b, len(sites)) for b in (subscript.start, subscript.stop))
        return sites[start : stop : subscript.step]
    return sites[subscript.index :][:1] if -len(sites) <= subscript.index < len(sites) else ()


def _bound(bound: float | None, count: int) -> int | None:
    """A bound as a number of sites; a share of them is rounded down, from the end that it counts from."""
    if not isinstance(bound, float):
        return bound
    return math.floor(bound * count) if bound >= 0 else count - math.floor(-bound * count)


def _places(site: Site) -> tuple[str, ...]:
    """Where a site is: a slice lies within its layer."""
    return (*site.paths, *site.spans) if isinstance(site.operator, OutputSlice) else site.paths


def _below(path: str, borders: set[str]) -> bool:
    # Upwards through the path's own ancestors: its cost does not grow with the number of places.
    if "" in borders:
        return True
    while path:
        if path in borders:
            return True
        path = path.rpartition(".")[0]
    return False
