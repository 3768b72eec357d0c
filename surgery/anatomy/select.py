"""Which places of a model a selector means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from surgery.anatomy.match import class_sites, glob_sites, parameter_role_sites
from surgery.anatomy.missing import Finder
from surgery.anatomy.partial import EXPECTED, lacking
from surgery.anatomy.paths import Paths
from surgery.anatomy.scope import inside, slice_sites
from surgery.anatomy.site import BareParameter, OutputSlice, Site
from surgery.anatomy.state import uncollected
from surgery.anatomy.where import test
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError, error, first_of

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy

Part = syntax.Path | syntax.Role | syntax.Class | syntax.All | syntax.Sliced | syntax.Group
Things = Literal["modules", "parameters"]


@dataclass(frozen=True)
class Selection:
    """The sites a selector means, in the order of the model, and what was odd about it."""

    sites: tuple[Site, ...]
    warnings: tuple[Diagnostic, ...] = ()

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(site.path for site in self.sites)


def select(
    model: nn.Module,
    selector: syntax.Selector | str,
    anatomy: Callable[[], Anatomy],
    *,
    of: Things = "modules",
    paths: Paths | None = None,
) -> Selection:
    """The sites of ``model`` that ``selector`` means.

    ``anatomy`` is called only if a role or a layer index is needed: paths and classes are
    answered from names alone. With ``of="parameters"`` (as `freeze` and `train` need) every part
    stands for the parameters in it, so that `all except bias` leaves the biases out. ``paths`` are
    the model's names, if they have been read.
    """
    if not isinstance(selector, syntax.Selector):
        selector = _parsed(selector)
    with uncollected():
        evaluation = _Evaluation(paths or Paths(model), anatomy, of)
        sites = evaluation.selector(selector)
    if evaluation.errors:
        in_order = sorted(evaluation.errors, key=lambda d: d.labels[0].span.start)
        raise SurgeryError(first_of(in_order))
    return Selection(sites, tuple(evaluation.warnings))


def _parsed(text: Any) -> syntax.Selector:
    from surgery.language.parse import parse_selector

    if not isinstance(text, str):
        raise error("S120", f"a selector is a text, and this is a {type(text).__name__}")
    return parse_selector(text)


class _Evaluation:
    def __init__(self, paths: Paths, anatomy: Callable[[], Anatomy], of: Things):
        self.paths = paths
        self.anatomy = anatomy
        self.of = of
        self.errors: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        self.finder = Finder(paths, anatomy)

    def selector(self, node: syntax.Selector) -> tuple[Site, ...]:
        """The sites of one selector; what is wrong with it goes to ``errors``."""
        known = len(self.errors)
        found = [(part, self.part(part)) for part in node.union.parts]
        for part, sites in found:
            if not sites:
                self.dead(part)
        if node.within is not None:
            found = self.narrowed(found, node.within)
        sites = self.ordered(site for _, sites in found for site in sites)
        if node.where is not None:
            held = tuple(site for site in sites if test(node.where, site, self.paths, self.anatomy))
            if sites and not held:
                self.fail("S301", "no selected module satisfies the `where` clause", node.where)
            sites = held
        if node.exceptions is not None:
            sites = self.without(sites, node.exceptions)
        if node.expect is not None and len(self.errors) == known and len(sites) != node.expect:
            self.unexpected(node, sites)
        if (node.within, node.where, node.exceptions, node.expect) == (None,) * 4:
            self.half(found)
        return sites

    def part(self, node: Part) -> tuple[Site, ...]:
        """The sites of one part of a union, in model order."""
        return self.expanded(self.places(node))

    def places(self, node: Part) -> tuple[Site, ...]:
        """The same, before modules are taken apart into parameters: what a slice counts."""
        match node:
            case syntax.Group():
                return self.selector(node.selector)
            case syntax.Sliced():
                whole = self.places(node.item)
                # A role's order is that of layers, and layers of two stacks do not mix.
                by_layer = isinstance(node.item, syntax.Role) and bool(whole)
                stack = self.anatomy().stack_of if by_layer else None
                return slice_sites(whole, node.subscript, stack)
            case syntax.Path():
                return self.ordered(glob_sites(node, self.paths, self.dead_alternative))
            case syntax.Class():
                return self.ordered(class_sites(node.name, self.paths))
            case syntax.All():
                return self.ordered(self.paths.module(path) for path in self.paths.modules)
            case syntax.Role():
                return self.ordered(self.role(node.name))

    def role(self, name: str) -> tuple[Site, ...]:
        direct = parameter_role_sites(name, self.paths)
        return self.anatomy().places.get(name, ()) if direct is None else direct

    def expanded(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        """As parameters, where those are asked for."""
        if self.of == "modules":
            return sites
        names = [name for site in sites for name in self.parameters(site)]
        return self.ordered(self.paths.parameter(name) for name in dict.fromkeys(names))

    def parameters(self, site: Site) -> list[str]:
        match site.operator:
            case BareParameter():
                return [site.path]
            case OutputSlice():
                return []
            case _:
                return [name for path in site.spans for name in self.paths.below(path)]

    def ordered(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Each once, in model order; of two readings of one place the one that knows its role."""
        best: dict[str, Site] = {}
        for site in sites:
            if site.path not in best or (best[site.path].role is None and site.role is not None):
                best[site.path] = site
        keys = {path: self.paths.order(site.spans[0]) for path, site in best.items()}
        return tuple(best[path] for path in sorted(best, key=keys.__getitem__))

    def narrowed(
        self, found: list[tuple[Part, tuple[Site, ...]]], within: syntax.Union
    ) -> list[tuple[Part, tuple[Site, ...]]]:
        before = len(self.errors)
        places = [site for part in within.parts for site in self.alive(part)]
        if len(self.errors) > before:
            return [(part, ()) for part, _ in found]
        kept: list[tuple[Part, tuple[Site, ...]]] = []
        for part, sites in found:
            held = inside(sites, places)
            kept.append((part, held))
            if sites and not held:
                text = within.span.text
                self.fail(
                    "S301", f"nothing matches: {len(sites)} found, but none inside `{text}`", part
                )
        return kept

    def alive(self, part: Part) -> tuple[Site, ...]:
        sites = self.part(part)
        if not sites:
            self.dead(part)
        return sites

    def without(self, sites: tuple[Site, ...], exceptions: syntax.Union) -> tuple[Site, ...]:
        places: list[Site] = []
        for part in exceptions.parts:
            kept, self.errors = self.errors, []
            found = self.part(part)
            lost, self.errors = self.errors, kept
            if not found or (sites and not inside(sites, found)):
                self.spared(part, bool(found), lost)
            places += found
        gone = {site.path for site in inside(sites, places)}
        left = tuple(site for site in sites if site.path not in gone)
        if sites and not left:
            self.fail("S301", "`except` removes every selected module", exceptions)
        return left

    def spared(self, part: Part, found: bool, lost: list[Diagnostic]) -> None:
        message = (
            "this `except` removes nothing: none of it was selected"
            if found
            else (lost[0] if lost else self.finder.explain(part)).message.replace(
                "nothing matches", "this `except` removes nothing"
            )
        )
        self.warn("S302", message, part)

    def half(self, found: list[tuple[Part, tuple[Site, ...]]]) -> None:
        """Tell of roles that are in some layers only, where nothing says that this is meant."""
        for part, sites in found:
            if self.of == "modules" and isinstance(part, syntax.Role) and part.name in EXPECTED:
                without, total = lacking(self.anatomy(), sites) if sites else ([], 0)
                if without:
                    more = f" and {len(without) - 1} more have" if without[1:] else " has"
                    self.warn(
                        "S305",
                        f"`{part.name}` is in {total - len(without)} of {total} layers: "
                        f"`{without[0]}`{more} none",
                        part,
                    )

    def dead(self, part: Part) -> None:
        """Say why ``part`` matched nothing, unless something within it already did."""
        if isinstance(part, syntax.Sliced) and not self.places(part.item):
            return self.dead(part.item)
        if any(_within(error, part) for error in self.errors):
            return None
        places = self.places(part)
        if places and all(isinstance(site.operator, OutputSlice) for site in places):
            layer = places[0].exit.path
            self.fail(
                "S301",
                f"this is a slice of the fused layer `{layer}`, and has no parameters",
                part,
                "train or freeze the whole layer, or apply a method to the slice",
            )
        elif places:
            found = "it has" if len(places) == 1 else f"the {len(places)} modules have"
            self.fail("S301", f"{found} no parameters", part)
        elif isinstance(part, syntax.Sliced):
            found = len(self.places(part.item))
            self.fail(
                "S301",
                f"the index or slice selects nothing: there are only {found} to choose from",
                part,
            )
        else:
            self.errors.append(self.finder.explain(part))
        return None

    def dead_alternative(self, part: syntax.Path) -> None:
        if not any(_within(error, part) for error in self.errors):
            self.errors.append(self.finder.explain(part))

    def unexpected(self, node: syntax.Selector, sites: tuple[Site, ...]) -> None:
        shown = ", ".join(site.path for site in sites[:4]) + (", …" if len(sites) > 4 else "")
        message = f"expected {node.expect}, but {len(sites)} match"
        self.fail("S303", message, node, f"they are {shown}" if sites else None)

    def warn(self, code: str, message: str, node: syntax.Node) -> None:
        self.warnings.append(Diagnostic(code, message, (Label(node.span),), severity="warning"))

    def fail(self, code: str, message: str, node: syntax.Node, help: str | None = None) -> None:
        self.errors.append(Diagnostic(code, message, (Label(node.span),), help))


def _within(error: Diagnostic, part: Part) -> bool:
    span = error.labels[0].span
    return (
        span.source is part.span.source
        and span.start >= part.span.start
        and span.end <= part.span.end
    )
