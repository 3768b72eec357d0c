"""Methods applied to an operator: from rule and arguments to one expression and its params.

At a site each method wraps what stands. The operator's result is always an expression in the
original input `x`; a method rebinds the result, or an operand, and the next one sees the outcome.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.rules.binding import chain
from surgery.rules.dims import Dim
from surgery.rules.evaluate import evaluate, tensor
from surgery.rules.expression import Expression, Shape, operand
from surgery.rules.fold import fold
from surgery.rules.frame import Frame, bind_dims
from surgery.rules.primitives import OPERATORS, PRIMITIVES
from surgery.rules.rows import Rows
from surgery.rules.shapes import show_shape
from surgery.rules.simplify import make, substitute
from surgery.rules.slices import put
from surgery.rules.state import OPERANDS, State, effective, read_operand
from surgery.rules.values import Closure, Declaration, Opaque, Value


def apply_method(closure: Closure | Opaque, state: State) -> None:
    """Run a method's body on ``state``.

    Raises:
        SurgeryError: S401 if its `match` is of another operator; S2xx for faults of the rule.

    """
    if isinstance(closure, Opaque):
        state.notes.changed = True
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
    if frame.state.kind == "attention":
        _check_lengths(frame)


def _check_lengths(frame: Frame) -> None:
    """New keys, values and places of the mask must be the same in number."""
    operands = frame.state.operands
    lengths: dict[str, Dim] = {}
    for name, axis in (("k", 2), ("v", 2), ("mask", 3)):
        value = operands[name]
        assert value is not None
        lengths[name] = frame.shapes.resolve(value.shape[axis])
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        target = next(iter(frame.targets))
        raise error(
            "S211",
            f"an attention needs as many keys as values and places in its mask: {shown}",
            frame.spans[target],
            help="`mask = reveal(mask, n, along = t)` lets every query see n new keys",
        )


def _apply(application: syntax.Application, frame: Frame) -> None:
    named = frame.lookup(application.name, application.name_span)
    if isinstance(named, Opaque):
        given = [evaluate(a.value, frame) for a in application.arguments]
        frame.state.notes.given += [g for g in given if isinstance(g, Expression)]
        apply_method(named, frame.state)
    else:
        apply_method(chain(application, frame, core=False), frame.state)


def _verb_help(closure: Closure) -> str:
    return f"a block is given to a verb: `sequential {closure.definition.name}(…)` or `parallel {closure.definition.name}(…)`"


def _match(step: syntax.Match, frame: Frame) -> None:
    if step.operator not in OPERANDS:
        raise error(
            "S219",
            f"no operator is named `{step.operator}`",
            step.operator_span,
            help=f"a rule matches one of {', '.join(OPERANDS)}",
        )
    state = frame.state = _operator(frame.state, step)
    formal = OPERANDS[step.operator]
    if len(step.operands) > len(formal):
        raise error(
            "S219",
            f"`{step.operator}` has the operands {', '.join(formal)}",
            step.operands[-1].span,
        )
    bind_dims(step.result, state.result, frame)
    frame.targets[step.result.name] = "y"
    for given, canonical in _paired(step.operands, formal):
        if given.name in frame.targets:
            raise error("S215", f"`{given.name}` names two operands", given.span)
        _check_presence(given, canonical, state)
        value = state.operands.get(canonical)
        if value is not None:
            bind_dims(given, value, frame)
        frame.targets[given.name] = canonical
    frame.spans |= {o.name: o.span for o in (step.result, *step.operands)}


def _operator(state: State, step: syntax.Match) -> State:
    """The operator of the site that a method matches."""
    if step.operator == "attention" and state.core is not None:
        return state.core
    if step.operator == state.kind or (step.operator == "module" and state.kind == "linear"):
        return state
    raise error(
        "S401", f"this matches {_NAMES[step.operator]}, and the site is none", step.operator_span
    )


_NAMES = {
    "linear": "a linear layer",
    "module": "a module",
    "attention": "an attention with a softmax core",
    "tokens": "the tokens of a model",
}


def _paired(
    given: tuple[syntax.Operand, ...], formal: tuple[str, ...]
) -> Iterator[tuple[syntax.Operand, str]]:
    """Operands by position; one called by a name of its operator's own stands for that."""
    for position, one in enumerate(given):
        yield one, one.name if one.name in formal else formal[position]


def _check_presence(given: syntax.Operand, canonical: str, state: State) -> None:
    absent = not state.has_norm if canonical == "norm" else state.operands.get(canonical) is None
    if absent and not given.optional:
        words = {
            "b": "bias",
            "residual": "residual sum",
            "norm": "norm after its residual sum",
            "positions": "way to be given positions",
            "memory": "decoder that attends to its states",
        }
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
    expected = _expected(state, target, current, value)
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
    state.notes.changed = True
    if target == "y":
        if state.kind == "tokens":
            _check_prompt(value, current, step)
        state.result, state.rebound = value, True
    else:
        _rebind(state, target, value, step)


_GROWS = {
    ("attention", "k"): 2,
    ("attention", "v"): 2,
    ("attention", "mask"): 3,
    ("tokens", "y"): 1,
}
"""The axis along which an operand, or the result, may become longer."""


def _expected(state: State, target: str, current: Expression, value: Expression) -> Shape:
    if target == "b":
        return state.origin.shape[-1:]
    axis = _GROWS.get((state.kind, target))
    if axis is None or len(value.shape) != len(current.shape):
        return current.shape
    return (*current.shape[:axis], value.shape[axis], *current.shape[axis + 1 :])


def _rebind(state: State, target: str, value: Expression, step: syntax.Assign) -> None:
    if state.rebound:
        raise error(
            "S221",
            f"`{step.target}` is rebound after the result was",
            step.span,
            help="rebind operands first: the result is computed from them",
        )
    if target not in ("W", "b"):
        if state.kind in ("attention", "tokens"):
            _check_own(state, target, value, step)
        state.operands[target] = value
    elif value.varies:
        raise error("S222", f"`{step.target}` would depend on the input", step.span)
    else:
        weight, bias = (
            value if name == target else tensor(effective(state, name, step.span), step.span)
            for name in ("W", "b")
        )
        x = operand("x", (*state.origin.shape[:-1], weight.shape[-1]))
        state.origin = make("linear", (x, weight, bias), state.origin.shape, span=step.span)
    # A rebound weight or bias is in the origin.
    changes = {
        operand(n, ()): v for n, v in state.operands.items() if v is not None and n not in "Wb"
    }
    state.result = substitute(state.origin, changes)


def _check_prompt(value: Expression, current: Expression, step: syntax.Assign) -> None:
    """Tokens are joined by others in front, or have some replaced."""
    placed = value.op == "place" or (value.op == "cat" and value.attribute("axis") == -2)
    if placed and value.arguments[1] == current and not value.arguments[0].varies:
        return
    raise error(
        "S222",
        f"`{step.target}` can only become `cat(P, {step.target}, along = s)` or "
        f"`place(P, {step.target}, token)`",
        step.span,
    )


def _check_own(state: State, target: str, value: Expression, step: syntax.Assign) -> None:
    """Each operand of an attention is made of itself, and of what is known beforehand."""
    others = [n for n in OPERANDS[state.kind] if n != target and value.reads(n)]
    if others:
        raise error(
            "S222",
            f"`{step.target}` would depend on `{others[0]}`",
            step.span,
            help="an operand of an attention is rebound to something made of itself",
        )
    if target in _FORMS:
        wanted, form = _FORMS[target]
        inner = value
        while inner.op == wanted:
            inner = inner.arguments[0]
        if inner != operand(target, ()):
            raise error("S222", f"`{step.target}` can only become `{form}`", step.span)


_FORMS = {
    "mask": ("reveal", "reveal(mask, n, along = t)"),
    "positions": ("add", "positions + n"),
    "memory": ("subtract", "memory - n"),
}
"""What an operand is made of itself by, where that is one thing alone."""


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
    part = state.rows(wrapped.rows)
    declared = _wrap(part, wrapped)
    state.result = put(state.result, part.result, wrapped.rows)
    state.named_dims = part.named_dims
    return declared


def _wrap(state: State, wrapped: Wrapped) -> list[Declaration]:
    before = len(state.notes.declarations)
    states = state.enter()
    outer = [(s, s.operands) for s in states]
    for inner in states:
        inner.operands = dict(inner.operands)
    path = f"{wrapped.child}."
    apply_method(_prefixed(wrapped.closure, path), state)
    for inner, operands in outer:
        inner.operands = operands
    if wrapped.folded:
        declared = state.notes.declarations[before:]
        state.notes.declarations[before:] = fold(states, wrapped.child, declared)
    return state.notes.declarations[before:]


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
