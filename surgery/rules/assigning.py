"""A rule's assignments: the result or an operand rebound, and what each may become."""

from __future__ import annotations

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.rules.body import Body
from surgery.rules.dims import Dim
from surgery.rules.evaluate import combine, evaluate
from surgery.rules.expression import (
    Expression,
    Shape,
    expanded,
    is_number,
    operand,
    with_shape,
)
from surgery.rules.limits import bounded
from surgery.rules.operands import tensor
from surgery.rules.ranges import COUNT
from surgery.rules.scaling import settle
from surgery.rules.shapes import ONE, show_shape
from surgery.rules.simplify import make, substitute
from surgery.rules.state import OPERANDS, State, effective, read_operand


def assign(step: syntax.Assign, body: Body) -> None:
    target = body.targets.get(step.target)
    if target is None or target in ("norm", "residual"):
        raise error(
            "S220",
            f"`{step.target}` is not an operand or the result of the match",
            step.target_span,
            help="a `let` names a value that does not change",
        )
    value = tensor(evaluate(step.value, body), step.value.span)
    state = body.state
    current = tensor(read_operand(state, target, step.target_span) or Dim.of(0), step.target_span)
    expected = _expected(state, target, current, value)
    if step.operator != "=":
        value = combine(step.operator[0], current, value, body.shapes, step.span)
    value = settle(value, state, step.span)
    if target in ("W", "b") and value.varies:
        raise error("S222", f"`{step.target}` would depend on the input", step.span)
    if not body.shapes.fits(value.shape, expected, f"`{step.target}`", step.span):
        raise error(
            "S211",
            f"`{step.target}` is {show_shape(expected)}, and this is {show_shape(value.shape)}",
            step.value.span,
            Label(body.spans[step.target], "bound here"),
        )
    state.notes.changed = True
    if state.kind in ("linear", "module"):
        value = _as_large(value, target, expected, state)
    if target == "y":
        if state.kind == "tokens":
            _check_prompt(value, current, step)
        state.result, state.rebound = value, True
    else:
        _rebind(state, target, value, step)
        if state.kind == "tokens":
            _check_count(value, step, body)
    bounded(state.result, step.span)


def _as_large(value: Expression, target: str, expected: Shape, state: State) -> Expression:
    """``value`` repeated where it has one element for many of what it takes the place of."""
    resolve = state.shapes.resolve
    fits = len(value.shape) == len(expected) and all(
        resolve(a) != ONE or resolve(b) == ONE for a, b in zip(value.shape, expected, strict=True)
    )
    if target in ("W", "b"):
        absent = target == "b" and is_number(value, 0)
        fits = absent or (fits and value.number is None)
        return value if fits else expanded(value, expected)
    if fits and (value.varies or value.number is not None):
        return value
    if value.number is not None:
        return with_shape(value, expected)
    like = operand("x", expected) if target == "x" else state.pattern
    return make("spread", (value, like), expected, span=value.span)


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
    elif target == "W" and len(value.shape) != 2:
        raise error(
            "S211", f"`{step.target}` is a matrix, and this is {show_shape(value.shape)}", step.span
        )
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


def _check_count(value: Expression, step: syntax.Assign, body: Body) -> None:
    """Positions and the memory change by a whole number."""
    if not value.arguments:
        return
    count = value.arguments[1].number
    if count is None:
        raise error("S222", f"`{step.target}` changes by a number", step.value.span)
    body.demand(COUNT.of(count, step.value.span, body.origin(step.value)))


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


def check_lengths(body: Body) -> None:
    """New keys, values and places of the mask must be the same in number."""
    operands = body.state.operands
    lengths: dict[str, Dim] = {}
    for name, axis in (("k", 2), ("v", 2), ("mask", 3)):
        value = operands[name]
        assert value is not None
        lengths[name] = body.shapes.resolve(value.shape[axis])
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        target = next(iter(body.targets))
        raise error(
            "S211",
            f"an attention needs as many keys as values and places in its mask: {shown}",
            body.spans[target],
            help="`mask = reveal(mask, n, along = t)` lets every query see n new keys",
        )
