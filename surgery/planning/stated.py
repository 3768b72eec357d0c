"""The penalty that a statement puts on a method at a site."""

from __future__ import annotations

from surgery.language import syntax
from surgery.planning.edit import Edit
from surgery.planning.spec import Spec
from surgery.planning.targets import local_name
from surgery.rules.checks import refuse_schedules
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, param, walk
from surgery.rules.program import build
from surgery.rules.trained import PenaltyTerm
from surgery.rules.training import ParamNames, penalty_term
from surgery.rules.values import Value, is_clock


def stated_penalty(spec: Spec, number: int, edit: Edit) -> PenaltyTerm:
    """What statement ``number`` of ``spec``, a `penalty`, says of the params of ``edit``.

    Raises:
        SurgeryError: S207 for names that it does not know, S285 if it is more than one number, S289
            if it depends on the step and nothing counts the steps of the method.

    """
    statement = spec.statements[number]
    assert isinstance(statement, syntax.Penalty)
    program = build(edit.signature, (edit.wrapped,))
    declared = dict(program.declarations)[edit.graft]
    own = {t.name.removeprefix(edit.prefix): t for t in edit.tensors}
    params: dict[str, Expression] = {
        local_name(edit, own[d.name]): param(d.name, d.shape, d.span)
        for d in declared
        if d.name in own
    }
    numbers: dict[str, Value] = {name: Dim.named(name) for name in edit.sizes}
    given = edit.wrapped.closure.arguments
    numbers |= {name: value for name, value in given.items() if isinstance(value, Dim)}
    names = ParamNames(spec.constants, params, numbers)
    term = penalty_term(statement.value, statement.span, names)
    if not any(is_clock(d) for d in declared):
        found = [e.number for e in walk(term.value) if e.number is not None]
        refuse_schedules((n, statement.value.span) for n in found)
    return term
