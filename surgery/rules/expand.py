"""Methods applied to an operator: from rule and arguments to one expression and its params.

At a site each method wraps what stands. The operator's result is always an expression in the
original input `x`; a method rebinds the result, or an operand, and the next one sees the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.rules.affine import NotAffine, merge
from surgery.rules.dims import Dim
from surgery.rules.evaluate import chain, condition, evaluate, scalar, tensor
from surgery.rules.expression import STAR, Expression, number, operand, param
from surgery.rules.library import Scope
from surgery.rules.primitives import DISTRIBUTIONS, OPERATORS, PRIMITIVES
from surgery.rules.shapes import Shapes, show_shape
from surgery.rules.simplify import make, substitute
from surgery.rules.values import Closure, Condition, Declaration, HostModule, Init, Opaque, Value

OUT, IN = Dim.named("n"), Dim.named("m")
Kind = Literal["linear", "module"]
OPERANDS: dict[str, tuple[str, ...]] = {
    "linear": ("x", "W", "b"),
    "module": ("x", "residual", "norm"),
}


@dataclass(frozen=True)
class Requirement:
    condition: Condition
    span: Span


@dataclass
class State:
    """An operator while methods are applied to it. ``result`` is its value as a function of x."""

    kind: Kind
    origin: Expression
    """The operator as the current method found it."""
    result: Expression
    operands: dict[str, Expression | None]
    shapes: Shapes
    has_norm: bool = False
    declarations: list[Declaration] = field(default_factory=list[Declaration])
    requirements: list[Requirement] = field(default_factory=list[Requirement])
    named_dims: int | None = None
    """How many leading dims a rule named (`x[z, s, d]`: 2); None where none did."""
    given: list[Expression] = field(default_factory=list[Expression])
    """Tensors handed to a method that is not known yet (a verb checked on its own)."""
    rebound: bool = False
    changed: bool = False


def operator(
    kind: Kind,
    *,
    bias: bool = True,
    norm: bool = False,
    residual: bool = False,
    strict: bool = False,
    out: Dim = OUT,
    into: Dim = IN,
) -> State:
    """A fresh operator: W is [out, into], x is [*, into], the result [*, out]."""
    x = operand("x", (STAR, into))
    operands: dict[str, Expression | None] = {"x": x}
    if kind == "linear":
        weight = operand("W", (out, into))
        offset = operand("b", (out,)) if bias else None
        operands |= {"W": weight, "b": offset}
        arguments = (x, weight, offset) if offset else (x, weight)
        result = Expression("linear", arguments, (), (STAR, out))
    else:
        result = Expression("base", (x,), (), (STAR, out))
    operands["residual"] = operand("residual", (STAR, out)) if residual else None
    return State(kind, result, result, operands, Shapes(strict=strict), has_norm=norm)


class Frame:
    """The names a body knows: arguments, matched operands and dims, params and abbreviations."""

    def __init__(self, scope: Scope, state: State, path: str):
        self.scope = scope
        self.state = state
        self.shapes = state.shapes
        self.path = path
        self.values: dict[str, Value] = {}
        self.spans: dict[str, Span] = {}
        self.targets: dict[str, str] = {}

    def lookup(self, name: str, span: Span) -> Value | None:
        if name in self.targets:
            return _read(self.state, self.targets[name], span)
        return self.values.get(name)

    def known(self) -> list[str]:
        return [*self.targets, *self.values]

    def define(self, name: str, value: Value, span: Span) -> None:
        if name in self.values or name in self.targets:
            first = self.spans.get(name)
            raise error(
                "S215", f"`{name}` is already something here", span, first and Label(first, "this")
            )
        self.values[name] = value
        self.spans[name] = span

    def arguments(self, closure: Closure) -> None:
        for parameter in closure.definition.syntax.parameters:
            value = closure.arguments.get(parameter.name)
            if value is None and parameter.default is not None:
                value = evaluate(parameter.default, self)
            if value is not None:
                self.define(parameter.name, value, parameter.span)

    def call_block(self, block: Closure | Opaque, argument: Expression, span: Span) -> Expression:
        if block.kind != "block":
            raise error("S209", "a method is used with `apply`, not called", span)
        if isinstance(block, Opaque):
            return Expression("block", (argument,), (("name", block.name),), argument.shape, span)
        return run_block(block, argument, self.state, span)

    def step(self, step: syntax.Step) -> None:
        match step:
            case syntax.Require():
                requirement = Requirement(condition(step.condition, self), step.span)
                self.state.requirements.append(requirement)
            case syntax.Param():
                self._declare(step)
            case syntax.Let():
                self.define(step.name, evaluate(step.value, self), step.name_span)
            case _:
                raise error("S216", "this step has no place here", step.span)

    def _declare(self, step: syntax.Param) -> None:
        shape = tuple(scalar(evaluate(d, self), d.span) for d in step.dims)
        if STAR in shape:
            raise error("S212", "a param has a fixed shape, without `*`", step.span)
        init = self._init(step, shape)
        name = self.path + step.name
        earlier = next((d for d in self.state.declarations if d.name == name), None)
        if earlier:
            raise error(
                "S215",
                f"the param `{name}` is declared twice",
                step.name_span,
                Label(earlier.span, "first"),
            )
        self.state.declarations.append(
            Declaration(name, shape, init, step.frozen, step.shared, step.name_span)
        )
        self.define(step.name, param(name, shape, step.name_span), step.name_span)

    def _init(self, step: syntax.Param, shape: tuple[Dim, ...]) -> Init:
        if not step.random:
            value = tensor(evaluate(step.init, self), step.init.span)
            if value.varies:
                raise error(
                    "S217", "a param cannot start from what flows through the model", step.init.span
                )
            if not self.shapes.fits(value.shape, shape, "param", step.span):
                raise error(
                    "S211",
                    f"`{step.name}` is {show_shape(shape)} and its start {show_shape(value.shape)}",
                    step.init.span,
                    Label(step.name_span, "declared here"),
                )
            return Init(None, value=value)
        known = ", ".join(DISTRIBUTIONS)
        if not isinstance(step.init, syntax.Call) or step.init.function not in DISTRIBUTIONS:
            raise error("S218", "`~` takes a distribution", step.init.span, help=f"one of {known}")
        names = DISTRIBUTIONS[step.init.function]
        given: dict[str, Dim] = {}
        for position, argument in enumerate(step.init.arguments):
            name = argument.name or (names[position] if position < len(names) else "")
            if name not in names or name in given:
                raise error(
                    "S218",
                    f"`{step.init.function}` takes {', '.join(names) or 'nothing'}",
                    argument.span,
                )
            given[name] = scalar(evaluate(argument.value, self), argument.span)
        missing = [n for n in names if n not in given]
        if missing:
            raise error(
                "S218", f"`{step.init.function}` needs {', '.join(missing)}", step.init.span
            )
        std = given.get("std", given.get("bound"))
        if std is not None and std.number == 0:
            return Init(None, value=number(0, step.init.span))
        return Init(step.init.function, tuple(given.items()))


def _read(state: State, target: str, span: Span) -> Value | None:
    if target == "y":
        return state.result
    if target == "norm":
        return HostModule("norm", state.has_norm)
    if target in ("W", "b"):
        return _effective(state, target, span)
    value = state.operands.get(target)
    return Dim.of(0) if value is None else value


def _effective(state: State, target: str, span: Span) -> Expression:
    """`W` or `b` with the effect of the methods already at this site in it."""
    found = merge(state.origin)
    if isinstance(found, NotAffine):
        raise error(
            "S402",
            f"this reads `{target}`, and what stands at the site has none: {found.reason}",
            span,
            found.span and Label(found.span, "not affine in the input"),
            help="put the method that reads the weight first",
        )
    return found.weight if target == "W" else found.bias


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
    _bind_dims(step.result, state.result, frame)
    frame.targets[step.result.name] = "y"
    for given, canonical in zip(step.operands, formal, strict=False):
        if given.name in frame.targets:
            raise error("S215", f"`{given.name}` names two operands", given.span)
        _check_presence(given, canonical, state)
        value = state.operands.get(canonical)
        if value is not None:
            _bind_dims(given, value, frame)
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


def _bind_dims(given: syntax.Operand, value: Expression, frame: Frame) -> None:
    if given.dims is None:
        return
    names = [d for d in given.dims if not isinstance(d, syntax.Star)]
    starred = len(names) != len(given.dims)
    if starred and not isinstance(given.dims[0], syntax.Star):
        raise error("S212", "`*` comes first", given.span)
    if not starred and value.shape and value.shape[0] == STAR:
        leading = len(names) - len(value.shape) + 1
        if frame.state.named_dims not in (None, leading):
            raise error(
                "S212", "another rule here names another number of leading dims", given.span
            )
        frame.state.named_dims = leading
        _spread(frame.state, leading)
        value = _retyped(value, leading)
    fixed = value.shape[len(value.shape) - len(names) :]
    if len(fixed) != len(names) or (starred and STAR in fixed):
        raise error("S212", f"`{given.name}` is {show_shape(value.shape)}", given.span)
    for dim, size in zip(names, fixed, strict=True):
        if not isinstance(dim, syntax.Name):
            raise error("S212", "a pattern binds dims by plain names", dim.span)
        bound = frame.values.get(dim.name)
        if bound is None:
            frame.define(dim.name, size, dim.span)
        elif not isinstance(bound, Dim) or not frame.shapes.equal(
            bound, size, f"`{dim.name}`", dim.span
        ):
            raise error("S211", f"`{dim.name}` stands for two different dims", dim.span)


def _leading(count: int) -> tuple[Dim, ...]:
    return tuple(Dim.named(f"*{i}") for i in range(count))


def _retyped(value: Expression, leading: int) -> Expression:
    shape = (*_leading(leading), *value.shape[1:]) if value.shape[:1] == (STAR,) else value.shape
    return Expression(value.op, value.arguments, value.attributes, shape, value.span)


def _spread(state: State, leading: int) -> None:
    """Name the leading dims that `*` stood for, in everything the operator reads and gives."""
    state.result = _retyped(state.result, leading)
    state.operands = {
        k: v and (_retyped(v, leading) if v.shape[:1] == (STAR,) else v)
        for k, v in state.operands.items()
    }


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
    current = tensor(_read(state, target, step.target_span) or Dim.of(0), step.target_span)
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
            value if name == target else tensor(_effective(state, name, step.span), step.span)
            for name in ("W", "b")
        )
        x = operand("x", (*state.origin.shape[:-1], weight.shape[-1]))
        state.origin = make("linear", (x, weight, bias), state.origin.shape, span=step.span)
    current = state.operands["x"]
    assert current is not None
    state.result = substitute(state.origin, {operand("x", ()): current})


def run_block(closure: Closure, argument: Expression, state: State, span: Span) -> Expression:
    """Call a block on a tensor; its params join the state's."""
    block = closure.definition.syntax
    assert isinstance(block, syntax.Block)
    frame = Frame(closure.definition.scope, state, closure.path)
    _bind_dims(block.input, argument, frame)
    frame.define(block.input.name, argument, block.input.span)
    frame.arguments(closure)
    for step in block.body:
        if isinstance(step, syntax.Return):
            return tensor(evaluate(step.value, frame), step.value.span)
        frame.step(step)
    raise error("S216", f"`{block.name}` returns nothing", block.name_span)


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
