"""Methods applied to an operator: from rule and arguments to one expression and its params.

At a site each method wraps what stands. The operator's result is always an expression in the
original input `x`; a method rebinds the result, or an operand, and the next one sees the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgery.language import syntax
from surgery.language.diagnostics import error
from surgery.rules.assigning import assign, check_lengths
from surgery.rules.binding import chain
from surgery.rules.body import Body
from surgery.rules.evaluate import evaluate
from surgery.rules.expression import Expression
from surgery.rules.fold import fold
from surgery.rules.leading import spread
from surgery.rules.matching import match_operator
from surgery.rules.placing import child_name, placed
from surgery.rules.rows import Rows
from surgery.rules.simplify import make
from surgery.rules.slices import put
from surgery.rules.state import State
from surgery.rules.values import Closure, Declaration, Opaque


def apply_method(closure: Closure | Opaque, state: State) -> None:
    """Run a method's body on ``state``.

    Raises:
        SurgeryError: S401 if its `match` is of another operator; S2xx for faults of the rule.

    """
    if isinstance(closure, Opaque):
        state.notes.changed = True
        name = (("name", closure.name),)
        state.result = Expression("block", (state.result,), name, state.result.shape)
        return
    if not isinstance(closure.definition.syntax, syntax.Method):
        raise error(
            "S209",
            f"`{closure.definition.name}` is a block",
            closure.span,
            help=_verb_help(closure),
        )
    with state.notes.depth.one_more(closure.span):
        _run(closure.definition.syntax, closure, state)


def _run(method: syntax.Method, closure: Closure, state: State) -> None:
    body = Body(closure.definition.scope, state, closure.path or "")
    matched = False
    for step in method.body:
        match step:
            case syntax.Match():
                match_operator(step, body)
                body.arguments(closure)
                matched = True
            case syntax.Assign():
                assign(step, body)
            case syntax.Apply():
                _apply(step.application, body)
            case _:
                body.step(step)
    if not matched:
        raise error("S216", f"`{method.name}` has no `match`", method.name_span)
    if body.state.kind == "attention":
        check_lengths(body)


def _apply(application: syntax.Application, body: Body) -> None:
    named = body.lookup(application.name, application.name_span)
    if isinstance(named, Opaque):
        given = [evaluate(a.value, body) for a in application.arguments]
        body.state.notes.given += [g for g in given if isinstance(g, Expression)]
        apply_method(named, body.state)
    else:
        closure = chain(application, body)
        apply_method(placed(closure, body.below(child_name(closure))), body.state)


def _verb_help(closure: Closure) -> str:
    return f"a block is given to a verb: `sequential {closure.definition.name}(…)` or `parallel {closure.definition.name}(…)`"


@dataclass(frozen=True)
class Wrapped:
    """One method of a site: the name its params live under, and the applied chain.

    When ``folded``, what networks computed from its params is a param itself.
    """

    child: str
    closure: Closure
    folded: bool = False
    rows: Rows | None = None
    """The part of the operator's outputs that the method is applied to; None is all of them."""


def wrap(state: State, wrapped: Wrapped) -> list[Declaration]:
    """Apply one `on` statement's method to an operator; returns the params it added.

    Names in the result are prefixed by ``wrapped.child``.
    """
    if wrapped.rows is None:
        return _wrap(state, wrapped)
    if not state.result.varies:
        state.result = make("spread", (state.result, state.pattern), state.pattern.shape)
    part = state.rows(wrapped.rows)
    if part.named_dims is not None:
        spread(part, part.named_dims)
    declared = _wrap(part, wrapped)
    state.result = put(state.result, part.result, wrapped.rows)
    if part.named_dims is not None:
        state.named_dims = part.named_dims
        spread(state, part.named_dims)
    return declared


def _wrap(state: State, wrapped: Wrapped) -> list[Declaration]:
    before = len(state.notes.declarations)
    states = state.enter()
    outer = [(s, s.operands) for s in states]
    for inner in states:
        inner.operands = dict(inner.operands)
    path = state.notes.child = f"{wrapped.child}."
    apply_method(placed(wrapped.closure, path), state)
    for inner, operands in outer:
        inner.operands = operands
        if inner.named_dims is not None:
            spread(inner, inner.named_dims)
    if wrapped.folded:
        declared = state.notes.declarations[before:]
        state.notes.declarations[before:] = fold(states, wrapped.child, declared)
    return state.notes.declarations[before:]
