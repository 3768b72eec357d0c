"""Which of the base's own parameters a spec trains and which it freezes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from surgery.anatomy.select import select
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError
from surgery.planning.idle import Idle
from surgery.planning.spec import Spec
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


def decide(
    usage: Usage,
    spec: Spec,
    found: list[Diagnostic],
    warnings: list[Diagnostic],
    *,
    adds: bool = False,
    settled: bool = False,
) -> Training:
    """Work out `freeze` and `train` in the order written.

    A spec that grafts or trains anything freezes the base first. `freeze A except B` trains B
    within A, and `train A except B` freezes it. Errors go to ``found``; one is that nothing
    trains, unless the spec ``adds`` what does. Of a spec that is ``settled``, what has no part in
    the result is no error.
    """
    parameters = dict(usage.model.named_parameters())
    decisions = _Decisions(usage, settled, found, warnings)
    if any(isinstance(s, syntax.On | syntax.Train) for s in spec.statements):
        decisions.trains = dict.fromkeys(parameters, False)
    for statement in spec.statements:
        if not isinstance(statement, syntax.On):
            decisions.take(statement)
    trains = decisions.trains
    found += _fixed(parameters, trains, decisions.by)
    now = {n: trains.get(n, p.requires_grad) for n, p in parameters.items()}
    if spec.statements and not adds and not any(now.values()) and not found:
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
