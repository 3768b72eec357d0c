"""From a spec and a model to a plan; nothing of the model changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy
from surgery.anatomy.select import select
from surgery.anatomy.site import BareParameter, Site, Tokens, WholeModule
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError, error, first_of
from surgery.planning.applying import plan_edit
from surgery.planning.edit import Edit, PlannedMethod
from surgery.planning.fingerprint import digests, fingerprint
from surgery.planning.idle import UNSIZED, Idle
from surgery.planning.layers import check_sizes, is_known, read_layer
from surgery.planning.place import Place
from surgery.planning.plan import Plan
from surgery.planning.spec import Spec
from surgery.planning.targets import MethodParams, with_flags
from surgery.planning.training import decide
from surgery.planning.usage import Usage
from surgery.rules.expand import Wrapped
from surgery.rules.limits import followed
from surgery.rules.program import build
from surgery.rules.prompts import token_change
from surgery.rules.standalone import fitting

Standing = Mapping[str, Sequence[Wrapped]]
"""The methods that are already at sites, by site path, in order."""


@dataclass
class Planner:
    """Plans specs for one model, whose forward is recorded once."""

    model: nn.Module
    example_inputs: Any = None
    standing: Standing = field(default_factory=dict[str, Sequence[Wrapped]])
    edits: Sequence[Edit] = ()
    """The same methods as plans have them, with the flags that their params have now."""
    settled: bool = False
    """Whether the spec was applied before: perhaps with inputs that reached what these do not."""

    @cached_property
    def usage(self) -> Usage:
        """Who takes part in a forward of the model."""
        return Usage(self.model, self.example_inputs)

    @property
    def anatomy(self) -> Anatomy:
        """What that forward tells of roles."""
        return self.usage.anatomy

    @cached_property
    def own_digests(self) -> Mapping[str, str]:
        return digests(self.model)

    def plan(self, spec: Spec, base: Mapping[str, str] | None = None) -> Plan:
        """Plan ``spec``.

        Raises:
            SurgeryError: everything that is wrong with the spec on this model: S3xx where selectors
                match nothing, S4xx where methods do not fit their sites.

        """
        check_sizes(self.model)
        draft = Draft(self, spec)
        for number, statement in enumerate(spec.statements):
            if isinstance(statement, syntax.On):
                draft.on(number, statement)
        draft.finish()
        params = MethodParams(self.usage, draft.edits, self.edits)
        training = decide(
            self.usage, spec, draft.found, draft.warnings, params, settled=self.settled
        )
        if draft.found:
            raise SurgeryError(first_of(draft.found))
        acts = any(isinstance(s, syntax.On | syntax.Train) for s in spec.statements)
        own = {t.name for e in draft.edits for t in e.tensors}
        known = base or self.own_digests
        return Plan(
            spec,
            fingerprint(known),
            known,
            tuple(with_flags(e, training.flags) for e in draft.edits),
            training.trained,
            training.frozen,
            training.elements,
            training.trained_elements,
            tuple(draft.warnings),
            (*draft.idle, *training.idle),
            self.usage.unchecked if acts else None,
            {name: flag for name, flag in training.flags.items() if name not in own},
            training.options,
            training.penalties,
        )


class Draft:
    """The edits of one spec while they are found, with what stands at each site already."""

    def __init__(self, planner: Planner, spec: Spec):
        self.planner = planner
        self.spec = spec
        self.edits: list[Edit] = []
        self.found: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        self.idle: list[str] = []
        self.applied = {path: list(wraps) for path, wraps in planner.standing.items()}

    def on(self, number: int, statement: syntax.On) -> None:
        model = self.planner.model
        try:
            selection = select(
                model,
                statement.selector,
                lambda: self.planner.anatomy,
                paths=self.planner.usage.paths,
            )
            with followed(statement.span):
                wrapped = self.spec.wrapped(number)
        except SurgeryError as problem:
            self.found += problem.diagnostics
            return
        self.warnings += selection.warnings
        lenient = any(isinstance(p, syntax.All) for p in statement.selector.union.parts)
        problems: dict[str, tuple[SurgeryError, list[str]]] = {}
        idle = Idle()
        for site in [s for found in selection.sites for s in self.sites(found, wrapped)]:
            place: Place | None = None
            try:
                with followed(statement.span):
                    place = self.place(site)
                    self.edits.append(self.edit(number, statement, place))
            except SurgeryError as problem:
                first = problem.diagnostics[0]
                if lenient and first.code == "S401":
                    continue
                if place is None or first.code != "S408":
                    key = f"{first.code} {first.message}"
                    problems.setdefault(key, (problem, []))[1].append(site.path)
                    continue
                idle.note(site.path, place.idle or UNSIZED, left=True)
                continue
            idle.note(site.path, place.idle)
        for problem, paths in problems.values():
            self.found += [_located(d, statement, paths) for d in problem.diagnostics]
        if problems:
            return
        if not idle.sites:
            self.found.append(
                Diagnostic(
                    "S410",
                    "the method fits none of the selected modules",
                    (Label(statement.span),),
                )
            )
        settled = self.planner.settled
        idle.tell(statement.selector, self.found, self.warnings, settled=settled)
        self.idle += idle.paths

    def finish(self) -> None:
        """Hold what all statements make of tokens against what can be done."""
        for edit in reversed(self.edits):
            whole = edit.site.whole
            if not isinstance(edit.site.operator, Tokens) or whole not in self.applied:
                continue
            program = build(edit.signature, tuple(self.applied.pop(whole)))
            change = token_change(program.result, edit.sizes)
            if change.unseen not in (0, change.joined):
                problem = error(
                    "S416",
                    f"{change.unseen} vectors stay within the encoder, and {change.joined} join it",
                    help=f"let all of them stay, or none: encoder_only({change.joined})",
                )
                statement = self.spec.statements[edit.method.statement]
                assert isinstance(statement, syntax.On)
                paths = [edit.site.name]
                self.found += [_located(d, statement, paths) for d in problem.diagnostics]

    def sites(self, site: Site, wrapped: Wrapped) -> tuple[Site, ...]:
        """``site``; or the weights in it that a method of linear layers is for: those of all experts,
        or one that it multiplies with itself.
        """
        linear = fitting(wrapped.closure).kind == "linear"
        whole = linear and isinstance(site.operator, WholeModule)
        if not whole and not isinstance(site.operator, BareParameter):
            return (site,)
        module = self.planner.usage.paths.modules[site.owner]
        if is_known(module) or read_layer(module) is not None:
            return (site,)
        held = [n for n, p in module._parameters.items() if p is not None and p.dim() > 1]
        anatomy = self.planner.anatomy
        experts = anatomy.experts_in(site) if held else ()
        matrix = anatomy.matrix_at(site) if held and not experts else None
        return experts or (matrix or site,)

    def place(self, site: Site) -> Place:
        """``site`` with what must be known of it, if it is one that a method may be applied to."""
        if isinstance(site.operator, BareParameter):
            raise error(
                "S401",
                "methods apply to modules, but this selects parameters",
                help="a parameter is a place for one only where its module multiplies with it itself, "
                "or where it holds the weights of all experts",
            )
        return Place(self.planner.usage, site)

    def edit(self, number: int, statement: syntax.On, place: Place) -> Edit:
        """Plan one method at one place, or raise why it does not fit there."""
        text = " ".join(statement.application.span.text.split())
        written = str(statement.span).rpartition(":")[0]
        method = PlannedMethod(self.spec, number, self.spec.wrapped(number).child, text, written)
        return plan_edit(place, method, self.applied.setdefault(place.site.whole, []))


def _located(diagnostic: Diagnostic, statement: syntax.On, paths: list[str]) -> Diagnostic:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    whole = statement.application.span
    where = f"applied to `{paths[0]}`{more}" if paths[0] else "applied to the model"
    labels = (Label(whole, where), *diagnostic.labels)
    written = diagnostic.labels[0] if diagnostic.labels else None
    if written and not written.text and whole.holds(written.span):
        labels = (Label(written.span, where), *diagnostic.labels[1:])
    return Diagnostic(
        diagnostic.code,
        diagnostic.message,
        labels,
        diagnostic.help,
        diagnostic.severity,
    )
