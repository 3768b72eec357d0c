"""Which of the base's own parameters a spec trains and which it freezes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from surgery.anatomy.select import select
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError
from surgery.planning.idle import Idle
from surgery.planning.spec import Spec

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy
    from surgery.planning.build import Planner


@dataclass(frozen=True)
class Training:
    """Names of base parameters the spec decides about, and counts of elements."""

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    elements: int
    trained_elements: int
    idle: tuple[str, ...] = ()


def decide(
    planner: Planner,
    spec: Spec,
    found: list[Diagnostic],
    warnings: list[Diagnostic],
    adds: bool = False,
) -> Training:
    """Work out `freeze` and `train` in the order written.

    A spec that grafts or trains anything freezes the base first. `freeze A except B` trains B
    within A, and `train A except B` freezes it. Errors go to ``found``; one is that nothing
    trains, unless the spec ``adds`` what does.
    """
    model = planner.model
    parameters = dict(model.named_parameters())
    statements = spec.statements
    starts_frozen = any(isinstance(s, syntax.On | syntax.Train) for s in statements)
    trains: dict[str, bool] = dict.fromkeys(parameters, False) if starts_frozen else {}
    trained_by: dict[str, syntax.Train | syntax.Freeze] = {}
    nothing: list[str] = []
    for statement in statements:
        if isinstance(statement, syntax.On):
            continue
        try:
            chosen, spared = _split(model, statement, lambda: planner.anatomy, warnings)
        except SurgeryError as problem:
            found += problem.diagnostics
            continue
        freeze = isinstance(statement, syntax.Freeze)
        trains |= dict.fromkeys(chosen, not freeze) | dict.fromkeys(spared, freeze)
        trained_by |= dict.fromkeys(spared if freeze else chosen, statement)
        if not freeze:
            idle = Idle()
            for name in chosen:
                idle.note(name, planner.usage.unused(name))
            idle.tell(statement.selector, found, warnings, "parameters", planner.settled)
            nothing += idle.paths
    found += _fixed(parameters, trains, trained_by)
    trained = tuple(n for n in parameters if trains.get(n))
    frozen = tuple(n for n in parameters if trains.get(n) is False)
    now = {n: trains.get(n, p.requires_grad) for n, p in parameters.items()}
    if statements and not adds and not any(now.values()) and not found:
        found.append(
            Diagnostic(
                "S409",
                "nothing is trainable: every parameter is frozen, and none is added",
                (Label(statements[-1].span),),
                "train something: `train bias`, or `freeze all except head`",
            )
        )
    return Training(
        trained,
        frozen,
        sum(p.numel() for p in parameters.values()),
        sum(p.numel() for n, p in parameters.items() if now[n]),
        tuple(dict.fromkeys(n for n in nothing if trains.get(n))),
    )


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
