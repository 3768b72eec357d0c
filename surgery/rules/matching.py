"""A rule's `match` at a site: its names stand for the operator's result and operands."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.language import syntax
from surgery.language.diagnostics import error
from surgery.rules.body import Body, bind_dims
from surgery.rules.state import OPERANDS, State


def match_operator(step: syntax.Match, body: Body) -> None:
    if step.operator not in OPERANDS:
        raise error(
            "S219",
            f"no operator is named `{step.operator}`",
            step.operator_span,
            help=f"a rule matches one of {', '.join(OPERANDS)}",
        )
    state = body.state = _operator(body.state, step)
    formal = OPERANDS[step.operator]
    if len(step.operands) > len(formal):
        raise error(
            "S219",
            f"`{step.operator}` has the operands {', '.join(formal)}",
            step.operands[-1].span,
        )
    bind_dims(step.result, state.result, body)
    body.targets[step.result.name] = "y"
    for given, canonical in _paired(step.operands, formal):
        if given.name in body.targets:
            raise error("S215", f"`{given.name}` names two operands", given.span)
        _check_presence(given, canonical, state)
        value = state.operands.get(canonical)
        if value is not None:
            bind_dims(given, value, body)
        body.targets[given.name] = canonical
    body.spans |= {o.name: o.span for o in (step.result, *step.operands)}


def _operator(state: State, step: syntax.Match) -> State:
    """The operator of the site that a method matches."""
    if step.operator == "attention" and state.core is not None:
        return state.core
    if step.operator == state.kind or (step.operator == "module" and state.kind == "linear"):
        return state
    site = "an attention" if state.core is not None else _NAMES[state.kind]
    raise error(
        "S401",
        f"this matches {_NAMES[step.operator]}, and the site is {site}",
        step.operator_span,
        help=_HELP.get(step.operator),
    )


_NAMES = {
    "linear": "a linear layer",
    "module": "a module",
    "attention": "an attention with a softmax core",
    "tokens": "the tokens of a model",
}
_HELP = {
    "linear": "select layers: `on linear …`, `on q|v …`, or those in a module: `on linear in mlp …`",
    "attention": "select attentions: `on attention …`, `on attention.self …`, `on attention.cross …`",
    "tokens": "select where tokens enter: `on tokens …`",
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
            f"this rule needs a {words.get(canonical, canonical)}, and the site has none",
            given.span,
            help=f"`{given.name}?` in the match makes it optional",
        )
