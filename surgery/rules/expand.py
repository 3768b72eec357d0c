"""Methods applied to an operator: from rule and arguments to one expression and its params.

At a site each method wraps what stands. The operator's result is always an expression in the
original input `x`; a method rebinds the result, or an operand, and the next one sees the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.rules.binding import chain
from surgery.rules.dims import Dim
from surgery.rules.evaluate import evaluate, tensor
from surgery.rules.expression import Expression, operand
from surgery.rules.frame import Frame, bind_dims
from surgery.rules.primitives import OPERATORS, PRIMITIVES
from surgery.rules.shapes import show_shape
from surgery.rules.simplify import make, substitute
from surgery.rules.state import OPERANDS, State, effective, read_operand
from surgery.rules.values import Closure, Declaration, Opaque, Value


def apply_method(closure: Closure | Opaque, state: State) -> None:
    """Run a method's body on ``state``.

    Raises:
        SurgeryError: S401 if its `match` is of another operator; S2xx for faults of the rule.

    """
    if isinstance(closure, Opaque):
        state.changed = True
        return
    if not isinstance(closure.definition.syntax, syntax.Method):
        raise error(
            "S209",
            f"`{closure.definition.name}` is a block",
            closure.span,
            help=_verb_help(closure),
        )
    method = closure.definition.syntax
    frame = Frame(closure.definition.scope, state, closure.path)
    matched = False
    for step in method.body:
        match step:
            case syntax.Match():
                _match(step, frame)
                frame.arguments(closure)
                matched = True
            case syntax.Assign():
                _assign(step, frame)
            case syntax.Apply():
                _apply(step.application, frame)
            case _:
                frame.step(step)
    if not matched:
        raise error("S216", f"`{method.name}` has no `match`", method.name_span)


def _apply(application: syntax.Application, frame: Frame) -> None:
    named = frame.lookup(application.name, application.name_span)
    if isinstance(named, Opaque):
        given = [evaluate(a.value, frame) for a in application.arguments]
        frame.state.given += [g for g in given if isinstance(g, Expression)]
        apply_method(named, frame.state)
    else:
        apply_method(chain(application, frame, core=False), frame.state)


def _verb_help(closure: Closure) -> str:
    return f"a block is given to a verb: `sequential {closure.definition.name}(…)` or `parallel {closure.definition.name}(…)`"


def _match(step: syntax.Match, frame: Frame) -> None:
    state = frame.state
    if step.operator not in OPERANDS:
        raise error(
            "S219",
            f"no operator is named `{step.operator}`",
            step.operator_span,
            help=f"a rule matches one of {', '.join(OPERANDS)}",
        )
    if step.operator == "linear" and state.kind != "linear":
        raise error("S401", "this matches a linear layer, and the site is none", step.operator_span)
    formal = OPERANDS[step.operator]
    if len(step.operands) > len(formal):
        raise error(
            "S219",
            f"`{step.operator}` has the operands {', '.join(formal)}",
            step.operands[-1].span,
        )
    bind_dims(step.result, state.result, frame)
    frame.targets[step.result.name] = "y"
    for given, canonical in zip(step.operands, formal, strict=False):
        if given.name in frame.targets:
            raise error("S215", f"`{given.name}` names two operands", given.span)
        _check_presence(given, canonical, state)
        value = state.operands.get(canonical)
        if value is not None:
            bind_dims(given, value, frame)
        frame.targets[given.name] = canonical
    frame.spans |= {o.name: o.span for o in (step.result, *step.operands)}


def _check_presence(given: syntax.Operand, canonical: str, state: State) -> None:
    absent = not state.has_norm if canonical == "norm" else state.operands.get(canonical) is None
    if absent and not given.optional:
        words = {"b": "bias", "residual": "residual sum", "norm": "norm after its residual sum"}
        raise error(
            "S403",
            f"this needs a {words.get(canonical, canonical)}, and the site has none",
            given.span,
            help=f"`{given.name}?` in the match makes it optional",
        )


def _assign(step: syntax.Assign, frame: Frame) -> None:
    target = frame.targets.get(step.target)
    if target is None or target in ("norm", "residual"):
        raise error(
            "S220",
            f"`{step.target}` is not an operand or the result of the match",
            step.target_span,
            help="a `let` names a value that does not change",
        )
    value = tensor(evaluate(step.value, frame), step.value.span)
    state = frame.state
    current = tensor(read_operand(state, target, step.target_span) or Dim.of(0), step.target_span)
    expected = _expected(state, target, current)
    if step.operator != "=":
        op = OPERATORS[step.operator[0]]
        shape = PRIMITIVES[op].shape(frame.shapes, (current, value), step.span)
        value = make(op, (current, value), shape, span=step.span)
    if not frame.shapes.fits(value.shape, expected, f"`{step.target}`", step.span):
        raise error(
            "S211",
            f"`{step.target}` is {show_shape(expected)}, and this is {show_shape(value.shape)}",
            step.value.span,
            Label(frame.spans[step.target], "bound here"),
        )
    state.changed = True
    if target == "y":
        state.result, state.rebound = value, True
    else:
        _rebind(state, target, value, step)


def _expected(state: State, target: str, current: Expression) -> tuple[Dim, ...]:
    return state.origin.shape[-1:] if target == "b" else current.shape


def _rebind(state: State, target: str, value: Expression, step: syntax.Assign) -> None:
    if state.rebound:
        raise error(
            "S221",
            f"`{step.target}` is rebound after the result was",
            step.span,
            help="rebind operands first: the result is computed from them",
        )
    if target == "x":
        state.operands["x"] = value
    elif value.varies:
        raise error("S222", f"`{step.target}` would depend on the input", step.span)
    else:
        weight, bias = (
            value if name == target else tensor(effective(state, name, step.span), step.span)
            for name in ("W", "b")
        )
        x = operand("x", (*state.origin.shape[:-1], weight.shape[-1]))
        state.origin = make("linear", (x, weight, bias), state.origin.shape, span=step.span)
    current = state.operands["x"]
    assert current is not None
    state.result = substitute(state.origin, {operand("x", ()): current})


@dataclass(frozen=True)
class Wrapped:
    """One method of a site: the name its params live under, and the applied chain."""

    child: str
    closure: Closure


def wrap(state: State, wrapped: Wrapped) -> list[Declaration]:
    """Apply one `on` statement's method to an operator; returns the params it added.

    Names in the result are prefixed by ``wrapped.child``.
    """
    before = len(state.declarations)
    outer = state.operands
    state.operands, state.rebound, state.origin = dict(outer), False, state.result
    path = f"{wrapped.child}."
    apply_method(_prefixed(wrapped.closure, path), state)
    state.operands = outer
    return state.declarations[before:]


def _prefixed(closure: Closure, path: str) -> Closure:
    arguments: Mapping[str, Value] = {
        k: _prefixed(v, path) if isinstance(v, Closure) else v for k, v in closure.arguments.items()
    }
    return Closure(closure.definition, arguments, closure.span, path + closure.path)


def child_name(application: syntax.Application) -> str:
    """The default name for a statement's params: its innermost method or block."""
    while application.operand is not None:
        application = application.operand
    for argument in application.arguments:
        if isinstance(argument.value, syntax.Call) and argument.name is None:
            return argument.value.function
    return application.name
