"""Why each statement of a spec does or does not apply at one site, and what comes of it there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.anatomy.paths import Paths
from surgery.anatomy.read import Anatomy
from surgery.anatomy.site import LinearMap, Site, covers
from surgery.graft.hosts import detached
from surgery.graft.state import surgery_of
from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError, did_you_mean, error
from surgery.planning.build import Draft, Planner
from surgery.planning.edit import Edit
from surgery.planning.spec import Spec, Statement
from surgery.planning.steering import Steering
from surgery.planning.targets import MethodParams
from surgery.reports.change import change
from surgery.reports.claims import merge_of
from surgery.reports.data import VERSION
from surgery.reports.entries import kind_of
from surgery.reports.figures import dimensions
from surgery.reports.matches import describe
from surgery.reports.reasons import Reasoner
from surgery.reports.report import Report
from surgery.rules.expand import Wrapped
from surgery.rules.program import build

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class StatementVerdict:
    """One statement at the site: whether it applies, why, and what it does there."""

    place: str
    statement: str
    applies: bool
    reason: str
    effects: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.place}   {self.statement}"]
        lines.append(f"    {'yes' if self.applies else 'no'}: {self.reason}")
        return "\n".join([*lines, *(f"    {effect}" for effect in self.effects)])


@dataclass(frozen=True)
class Explanation(Report):
    """All statements at one site, in the order written."""

    site: str
    kind: str
    roles: tuple[str, ...]
    verdicts: tuple[StatementVerdict, ...]

    def __str__(self) -> str:
        roles = f"   {', '.join(self.roles)}" if self.roles else ""
        head = f"{self.site or '(the model)'}   {self.kind}{roles}"
        return "\n\n".join([head, *map(str, self.verdicts)])

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {"version": VERSION, **asdict(self)}


def explanation_of(model: nn.Module, path: str, spec: Spec, inputs: Any) -> Explanation:
    """Explain every statement of ``spec`` at ``path``."""
    surgery = surgery_of(model)
    with detached(model):
        standing, edits = (surgery.standing(), surgery.current()) if surgery else ({}, [])
        planner = Planner(model, inputs, standing, edits)
        site = _site(planner, path)
        explainer = _Explainer(planner, spec, site)
        verdicts = tuple(explainer.verdicts())
        return Explanation(
            site.path, describe(model, site)[0], _roles(planner, site.path), verdicts
        )


class _Explainer:
    def __init__(self, planner: Planner, spec: Spec, site: Site):
        self.spec = spec
        self.site = site
        self.draft = Draft(planner, spec)
        self.edits: list[Edit] = []
        self.paths = Paths(planner.model)
        model = planner.model
        self.itself = Reasoner(model, lambda: planner.anatomy, self.is_site)
        self.inside = Reasoner(model, lambda: planner.anatomy, self.is_within)

    def is_site(self, found: Site) -> bool:
        around = (self.site.exit.path,) if isinstance(self.site.operator, LinearMap) else ()
        return any(path in (found.path, *found.paths) for path in (self.site.path, *around))

    def is_within(self, found: Site) -> bool:
        return any(covers(place, path) for place in self.site.spans for path in found.paths)

    def verdicts(self) -> Iterator[StatementVerdict]:
        for number, statement in enumerate(self.spec.statements):
            place = str(statement.span).rpartition(":")[0]
            text = " ".join(statement.span.text.split())
            if isinstance(statement, syntax.On):
                applies, reason, effects = self.graft(number, statement)
            else:
                applies, reason, effects = self.training(number, statement)
            yield StatementVerdict(place, text, applies, reason, tuple(effects))

    def graft(self, number: int, statement: syntax.On) -> tuple[bool, str, Sequence[str]]:
        reason = self.itself.why(statement.selector)
        if not reason.holds:
            return False, reason.text, ()
        wrapped = self.spec.wrapped(number)
        effects: list[str] = []
        try:
            for site in self.draft.sites(reason.sites[0], wrapped):
                if not _of_experts(site) or self.site.path in (site.path, site.exit.path):
                    place = self.draft.place(site)
                    edit = self.draft.edit(number, statement, place)
                    self.edits.append(edit)
                    *before, own = self.draft.applied[edit.site.whole]
                    effects += _effects(edit, tuple(before), own)
                    effects += [f"! no part in the result: such sites {place.idle}"] * bool(
                        place.idle
                    )
        except SurgeryError as problem:
            return False, f"{reason.text}, but the method does not fit", _faults(problem)
        return True, reason.text, effects

    def training(self, number: int, statement: Statement) -> tuple[bool, str, Sequence[str]]:
        assert not isinstance(statement, syntax.On)
        params = MethodParams(self.draft.planner.usage, self.edits, self.draft.planner.edits)
        if Steering(params, self.spec, []).concerns(statement):
            return self.of_methods(params, statement)
        reason = self.inside.why(statement.selector, of="parameters")
        if not reason.holds:
            return False, reason.text.replace("it", "any of its parameters", 1), ()
        verb = _VERBS[type(statement)]
        names = [site.path for site in reason.sites]
        shown = names[:6] + ([f"… {len(names) - 6} more"] * (len(names) > 6))
        text = reason.text.replace(" it", " parameters of it")
        return True, text, [f"{verb} {name}" for name in shown]

    def of_methods(
        self,
        params: MethodParams,
        statement: syntax.Freeze | syntax.Train | syntax.Optimize | syntax.Penalty,
    ) -> tuple[bool, str, Sequence[str]]:
        """What a statement says of the params that methods have here."""
        try:
            found = params.find(statement.selector)
        except SurgeryError as problem:
            return False, "it names no params of a method here", _faults(problem)
        names = [t.name for e, t in found if e.site.path == self.site.path]
        if not names:
            return False, "none of the params that it names is at this site", ()
        verb = _VERBS[type(statement)]
        return True, "it names params of a method here", [f"{verb} {name}" for name in names]


_VERBS: dict[type[syntax.Node], str] = {
    syntax.Freeze: "freezes",
    syntax.Train: "trains",
    syntax.Optimize: "sets the optimizer for",
    syntax.Penalty: "penalises",
}


def _effects(edit: Edit, before: tuple[Wrapped, ...], wrapped: Wrapped) -> Iterator[str]:
    def local(text: str) -> str:
        return text.replace(f"{edit.graft}.", "")

    yield f"{kind_of(edit)}, by {edit.method.text}"
    for a in edit.added:
        yield f"+ {a.name}   {'   '.join([dimensions(a.shape), a.init, *a.marks])}"
    signature = edit.signature
    program = build(signature, (*before, wrapped))
    yield local(change(build(signature, before).result, program.result))
    yield "identity at init" if program.is_identity else "! changes the output at initialization"
    merge, reason = merge_of(program)
    if merge is None or edit.derived.obstacle:
        yield f"! cannot be merged: {edit.derived.obstacle or reason}"
    else:
        none = {"bias": "0"}.items()
        yield from (f"merged {k} = {local(v)}" for k, v in merge.items() if (k, v) not in none)


def _faults(problem: SurgeryError) -> list[str]:
    lines: list[str] = []
    for found in problem.diagnostics:
        place = f" ({found.labels[0].span})" if found.labels else ""
        lines.append(f"! {found.message}{place}")
        lines += [f"  help: {found.help}"] if found.help else []
    return lines


def _site(planner: Planner, path: Any) -> Site:
    if not isinstance(path, str):
        raise error("S305", f"a path is a text, and this is a {type(path).__name__}")
    paths = Paths(planner.model)
    if path in paths.modules:
        return paths.module(path)
    if path in paths.parameters:
        site = paths.parameter(path)
        held = planner.anatomy.experts_in(site) if paths.parameters[path].dim() == 3 else ()
        return held[0] if held else site
    regions = [s.path for s in _regions(planner.anatomy)] if "[" in path else []
    for site in _regions(planner.anatomy) if regions else ():
        if site.path == path:
            return site
    known = [*paths.modules, *paths.parameters, *regions]
    raise error(
        "S305", f"nothing in this model has the path `{path}`", help=did_you_mean(path, known)
    )


def _of_experts(site: Site) -> bool:
    return site.layer is not None and site.layer.experts > 0


def _regions(anatomy: Anatomy) -> list[Site]:
    return [s for group in anatomy.places.values() for s in group if s.is_part]


def _roles(planner: Planner, path: str) -> tuple[str, ...]:
    try:
        return planner.anatomy.roles_of(path)
    except SurgeryError:
        return ()
