"""What a spec trains and what it freezes: parameters of the base, and those of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from surgery.anatomy.select import select
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError
from surgery.planning.idle import Idle
from surgery.planning.options import Option, SitePenalty
from surgery.planning.spec import Spec
from surgery.planning.steering import Steering, options_of
from surgery.planning.targets import MethodParams
from surgery.planning.usage import Usage

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy


@dataclass(frozen=True)
class Training:
    """Names of base parameters the spec decides about, and counts of elements."""

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    elements: int
    trained_elements: int
    idle: tuple[str, ...] = ()
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """Which params of methods train by what statements say of them, by name."""
    options: tuple[Option, ...] = ()
    penalties: tuple[SitePenalty, ...] = ()


def decide(
    usage: Usage,
    spec: Spec,
    found: list[Diagnostic],
    warnings: list[Diagnostic],
    params: MethodParams,
    *,
    settled: bool = False,
) -> Training:
    """Work out the statements of training in the order written.

    A spec that grafts, or trains anything of the base, freezes the base first. `freeze A except B`
    trains B within A, and `train A except B` freezes it. Errors go to ``found``; one is that
    nothing trains, neither of the base nor of the ``params`` of methods. Of a spec that is
    ``settled``, what has no part in the result is no error.
    """
    parameters = dict(usage.model.named_parameters())
    decisions = _Decisions(usage, settled, found, warnings)
    steering = Steering(params, spec, found, settled)
    of_methods = {n for n, s in enumerate(spec.statements) if steering.concerns(s)}
    of_base = [s for n, s in enumerate(spec.statements) if n not in of_methods]
    if any(isinstance(s, syntax.On | syntax.Train) for s in of_base):
        decisions.trains = dict.fromkeys(parameters, False)
    for number, statement in enumerate(spec.statements):
        if number in of_methods:
            steering.take(number, statement)
        elif isinstance(statement, syntax.Freeze | syntax.Train):
            decisions.take(statement)
        elif isinstance(statement, syntax.Optimize):
            steering.options += decisions.options(number, statement, spec)
    trains = decisions.trains
    found += _fixed(parameters, trains, decisions.by)
    now = {n: trains.get(n, p.requires_grad) for n, p in parameters.items()}
    steering.check_trained({n for n, trained in now.items() if trained})
    if spec.statements and not steering.trains and not any(now.values()) and not found:
        found.append(
            Diagnostic(
                "S409",
                "nothing is trainable: every parameter is frozen, and none is added",
                (Label(spec.statements[-1].span),),
                "train something: `train bias`, or `freeze all except head`",
            )
        )
    return Training(
        tuple(n for n in parameters if trains.get(n)),
        tuple(n for n in parameters if trains.get(n) is False),
        sum(p.numel() for p in parameters.values()),
        sum(p.numel() for n, p in parameters.items() if now[n]),
        tuple(dict.fromkeys(n for n in decisions.idle if trains.get(n))),
        steering.flags,
        tuple(steering.options),
        tuple(steering.penalties),
    )


@dataclass
class _Decisions:
    """What the statements so far say of each parameter, and which of them said it last."""

    usage: Usage
    settled: bool
    found: list[Diagnostic]
    warnings: list[Diagnostic]
    trains: dict[str, bool] = field(default_factory=dict[str, bool])
    by: dict[str, syntax.Train | syntax.Freeze] = field(
        default_factory=dict[str, syntax.Train | syntax.Freeze]
    )
    idle: list[str] = field(default_factory=list[str])

    def take(self, statement: syntax.Train | syntax.Freeze) -> None:
        """Let ``statement`` decide about the parameters that it selects."""
        usage = self.usage
        try:
            chosen, spared = _split(usage.model, statement, lambda: usage.anatomy, self.warnings)
        except SurgeryError as problem:
            self.found += problem.diagnostics
            return
        freeze = isinstance(statement, syntax.Freeze)
        self.trains |= dict.fromkeys(chosen, not freeze) | dict.fromkeys(spared, freeze)
        self.by |= dict.fromkeys(spared if freeze else chosen, statement)
        if freeze:
            return
        idle = Idle()
        for name in chosen:
            idle.note(name, usage.unused(name))
        idle.tell(statement.selector, self.found, self.warnings, "parameters", self.settled)
        self.idle += idle.paths

    def options(self, number: int, statement: syntax.Optimize, spec: Spec) -> list[Option]:
        """What an `optimize` says of parameters of the base."""
        usage, selector = self.usage, statement.selector
        try:
            selected = select(usage.model, selector, lambda: usage.anatomy, of="parameters")
            names = tuple(_names(usage.model, [s.path for s in selected.sites]))
            self.warnings += selected.warnings
            return options_of(number, statement, spec, names)
        except SurgeryError as problem:
            self.found += problem.diagnostics
            return []


def _fixed(
    parameters: Mapping[str, nn.Parameter],
    trains: Mapping[str, bool],
    by: Mapping[str, syntax.Train | syntax.Freeze],
) -> list[Diagnostic]:
    """What is to train and never can, by the statement that says so."""
    found: dict[int, Diagnostic] = {}
    for name, statement in by.items():
        parameter = parameters[name]
        if not trains[name]:
            continue
        if parameter.is_inference():
            what = "was made in inference mode"
        elif not (parameter.is_floating_point() or parameter.is_complex()):
            what = f"holds {str(parameter.dtype).removeprefix('torch.')}"
        else:
            continue
        message, label = f"`{name}` {what}, so it cannot train", Label(statement.span)
        help = f"leave it out: except `{name}`"
        found.setdefault(id(statement), Diagnostic("S524", message, (label,), help))
    return list(found.values())


def _split(
    model: nn.Module,
    statement: syntax.Freeze | syntax.Train,
    anatomy: Callable[[], Anatomy],
    warnings: list[Diagnostic],
) -> tuple[list[str], list[str]]:
    selector = statement.selector
    selection = select(model, selector, anatomy, of="parameters")
    warnings += selection.warnings
    chosen = _names(model, [s.path for s in selection.sites])
    if selector.exceptions is None:
        return chosen, []
    whole = select(model, replace(selector, exceptions=None, expect=None), anatomy, of="parameters")
    kept = set(chosen)
    return chosen, [n for n in _names(model, [s.path for s in whole.sites]) if n not in kept]


def _names(model: nn.Module, paths: list[str]) -> list[str]:
    """The names by which ``named_parameters`` knows these; tied ones have one."""
    first: dict[int, str] = {id(p): n for n, p in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    return [first[id(every[p])] for p in paths]
