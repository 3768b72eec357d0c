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
from surgery.anatomy.site import Site
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError, error
from surgery.planning.fingerprint import digests, fingerprint
from surgery.planning.layers import Layer, read_layer
from surgery.planning.plan import Edit, Plan, Tensor
from surgery.planning.spec import Spec
from surgery.planning.training import decide
from surgery.rules.affine import NotAffine
from surgery.rules.expand import Wrapped
from surgery.rules.program import Program, Signature, build, calls_norm

Standing = Mapping[str, Sequence[Wrapped]]
"""The methods that are already at sites, by site path, in order."""


@dataclass
class Planner:
    """Plans specs for one model; the anatomy is read once, and only if something needs it."""

    model: nn.Module
    example_inputs: Any = None
    standing: Standing = field(default_factory=dict[str, Sequence[Wrapped]])

    @cached_property
    def anatomy(self) -> Anatomy:
        from surgery.anatomy.read import read
        return read(self.model, self.example_inputs)

    @cached_property
    def weight_owners(self) -> dict[int, list[str]]:
        """The paths of the modules that hold each weight, by the identity of the parameter."""
        found: dict[int, list[str]] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            weight = module._parameters.get("weight")
            if weight is not None:
                found.setdefault(id(weight), []).append(path)
        return found

    @cached_property
    def own_digests(self) -> Mapping[str, str]:
        return digests(self.model)

    def plan(self, spec: Spec, base: Mapping[str, str] | None = None) -> Plan:
        """Plan ``spec``.

        Raises:
            SurgeryError: everything that is wrong with the spec on this model: S3xx where selectors
                match nothing, S4xx where methods do not fit their sites.
        """
        draft = _Draft(self, spec)
        for number, statement in enumerate(spec.statements):
            if isinstance(statement, syntax.On):
                draft.on(number, statement)
        training = decide(self.model, spec, lambda: self.anatomy, draft.found, draft.warnings)
        if draft.found:
            raise SurgeryError(draft.found)
        known = base or self.own_digests
        return Plan(
            spec,
            fingerprint(known),
            known,
            tuple(draft.edits),
            training.trained,
            training.frozen,
            training.elements,
            training.trained_elements,
            tuple(draft.warnings),
        )


class _Draft:
    def __init__(self, planner: Planner, spec: Spec):
        self.planner = planner
        self.spec = spec
        self.edits: list[Edit] = []
        self.found: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        self.applied = {path: list(wraps) for path, wraps in planner.standing.items()}

    def on(self, number: int, statement: syntax.On) -> None:
        model = self.planner.model
        try:
            selection = select(model, statement.selector, lambda: self.planner.anatomy)
            wrapped = self.spec.wrapped(number)
        except SurgeryError as problem:
            self.found += problem.diagnostics
            return
        self.warnings += selection.warnings
        lenient = any(isinstance(p, syntax.All) for p in statement.selector.union.parts)
        problems: dict[str, tuple[SurgeryError, list[str]]] = {}
        before = len(self.edits)
        for site in selection.sites:
            try:
                self.edits.append(self.edit(number, statement, site, wrapped))
            except SurgeryError as problem:
                first = problem.diagnostics[0]
                if lenient and first.code == "S401":
                    continue
                key = f"{first.code} {first.message}"
                problems.setdefault(key, (problem, []))[1].append(site.path)
        for problem, paths in problems.values():
            self.found += [_located(d, statement, paths) for d in problem.diagnostics]
        if not problems and len(self.edits) == before:
            self.found.append(
                Diagnostic(
                    "S410",
                    "this applies nowhere: the method fits none of the selected modules",
                    (Label(statement.span),),
                )
            )

    def edit(self, number: int, statement: syntax.On, site: Site, wrapped: Wrapped) -> Edit:
        """Plan one method at one site, or raise why it does not fit there."""
        if site.kind == "parameter":
            raise error("S401", "a method is applied to modules, and this selects parameters")
        place = _Place(self.planner, site)
        standing = self.applied.setdefault(site.path, [])
        _check_name(wrapped.child, place, standing)
        program = build(place.signature, (*standing, wrapped))
        if program.named_dims is not None or place.layer is None:
            place.locate()
        if program.named_dims is not None and place.rank != program.named_dims + 1:
            raise error(
                "S411",
                f"the rule names {program.named_dims + 1} dims of the hidden states, and here they "
                f"have {place.rank}",
            )
        sizes = place.sizes
        program.check(sizes)
        merged = program.merge
        if place.layer and place.layer.read and isinstance(merged, NotAffine):
            raise error(
                "S413",
                f"the layer is never called: its module reads the weight, so a method must merge, "
                f"and {_reason(merged)}",
            )
        standing.append(wrapped)
        return Edit(
            site=site.path,
            paths=site.paths,
            child=wrapped.child,
            statement=number,
            method=_method_text(statement),
            place=str(statement.span).rpartition(":")[0],
            formula=_formula(program, wrapped.child),
            operator=place.signature.kind,
            layer=place.layer,
            sizes=sizes,
            entry=place.site.entry,
            exit=place.site.exit,
            residual=place.site.residual if program.result.reads("residual") else None,
            norm=place.site.norm if calls_norm(program) else None,
            has_residual=place.signature.residual,
            has_norm=place.signature.norm,
            features=place.features,
            rank=place.rank,
            tensors=place.tensors(program, wrapped.child),
            identity=program.is_identity,
            merges=not isinstance(merged, NotAffine) and place.unmergeable is None,
            reason=_reason(merged) if isinstance(merged, NotAffine) else None,
            obstacle=place.unmergeable,
            flops=int(
                program.flops.value({**sizes, **_UNIT})
                - build(place.signature, tuple(standing[:-1])).flops.value({**sizes, **_UNIT})
            ),
        )


_UNIT = {f"*{i}": 1 for i in range(8)}


class _Place:
    """A site with what the planner must know of it; shapes are looked up only when asked for."""

    def __init__(self, planner: Planner, site: Site):
        self.planner = planner
        self.site = site
        model = planner.model
        self.module = model.get_submodule(site.exit.path if site.kind == "region" else site.path)
        parent = model.get_submodule(site.path.rpartition(".")[0])
        self.layer: Layer | None = read_layer(self.module, parent) if site.kind == "module" else None
        self.features = "first" if self.layer and self.layer.spatial else "last"
        self.rank: int | None = None

    @cached_property
    def signature(self) -> Signature:
        if self.layer is not None:
            return Signature("linear", bias=self.layer.bias)
        site = self.planner.anatomy.place_of(self.site)
        return Signature("module", norm=site.norm is not None, residual=site.residual is not None)

    def locate(self) -> None:
        """Look up where hidden states pass, and their layout."""
        self.site = self.planner.anatomy.place_of(self.site)
        call = self.planner.anatomy.call(self.site.exit.path)
        if call is None:
            raise error(
                "S408",
                "this module never runs in the model's forward",
                help="pass example_inputs that reach it, or leave it out",
            )
        self.rank = len(call.output_shape)
        if self.layer is None:
            self.features = call.layout

    @cached_property
    def sizes(self) -> dict[str, int]:
        if self.layer is not None:
            return {"n": self.layer.out, "m": self.layer.into}
        anatomy = self.planner.anatomy
        into = anatomy.port_shape(self.site.entry)
        out = anatomy.port_shape(self.site.exit)
        axis = 1 if self.features == "first" else -1
        return {"n": out[axis], "m": into[axis]}

    @cached_property
    def unmergeable(self) -> str | None:
        """Why the weight of this very layer cannot be changed, whatever the rule."""
        if self.layer is None:
            return None
        shared = self.planner.weight_owners.get(id(getattr(self.module, "weight", None)), ())
        others = [p for p in shared if p not in self.site.paths]
        if others:
            return f"the weight is tied with `{others[0]}`, which would change too"
        if not self.layer.native and self.layer.kind == "linear":
            return "the layer does not hold a plain weight"
        return None

    def tensors(self, program: Program, child: str) -> tuple[Tensor, ...]:
        dtype = _dtype(self.module)
        owner = self.site.exit.path if self.site.kind == "region" else self.site.path
        prefix = f"{owner}." if owner else ""
        declarations = dict(program.declarations)[child]
        return tuple(
            Tensor(
                prefix + d.name,
                tuple(int(s.value(self.sizes)) for s in d.shape),
                str(d.init),
                not d.frozen,
                d.shared,
                dtype,
            )
            for d in declarations
        )


def _dtype(module: nn.Module) -> str:
    import torch

    for parameter in module.parameters():
        if parameter.is_floating_point():
            return str(parameter.dtype).removeprefix("torch.")
    return str(torch.get_default_dtype()).removeprefix("torch.")


def _check_name(child: str, place: _Place, standing: Sequence[Wrapped]) -> None:
    if any(w.child == child for w in standing):
        raise error(
            "S407",
            f"there is a `{child}` at this site already",
            help=f"name one of them: `… as {child}_2`",
        )
    if hasattr(place.module, child):
        raise error(
            "S407",
            f"the module has an attribute `{child}` of its own",
            help="give the method another name with `as`",
        )


def _method_text(statement: syntax.On) -> str:
    return " ".join(statement.application.span.text.split())


def _formula(program: Program, child: str) -> str:
    return str(program.result).replace(f"{child}.", "")


def _reason(found: NotAffine) -> str:
    return f"{found.reason}{f' ({found.span})' if found.span else ''}"


def _located(diagnostic: Diagnostic, statement: syntax.On, paths: list[str]) -> Diagnostic:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    label = Label(statement.application.span, f"applied to {paths[0] or 'the model'}{more}")
    return Diagnostic(
        diagnostic.code,
        diagnostic.message,
        (label, *diagnostic.labels),
        diagnostic.help,
        diagnostic.severity,
    )
