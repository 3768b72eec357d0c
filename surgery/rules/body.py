"""The names that the body of a method or block knows, and the steps that add to them."""

from __future__ import annotations

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.language.syntax import mentioned
from surgery.rules.conditions import Requirement
from surgery.rules.declaring import declare, declare_clock, declare_draw, origin_of
from surgery.rules.dims import Dim
from surgery.rules.evaluate import condition, evaluate
from surgery.rules.expression import STAR, Expression
from surgery.rules.library import Scope
from surgery.rules.operands import tensor
from surgery.rules.ranges import unmet
from surgery.rules.shapes import show_shape
from surgery.rules.state import State, read_operand
from surgery.rules.training import after_step, penalty_term, tuning
from surgery.rules.values import Closure, Opaque, Value


class Body:
    """The names a body knows: arguments, matched operands and dims, params and abbreviations."""

    moment = "forward"

    def __init__(self, scope: Scope, state: State, path: str):
        self.scope = scope
        self.state = state
        self.shapes = state.shapes
        self.path = path
        self.values: dict[str, Value] = {}
        self.spans: dict[str, Span] = {}
        self.targets: dict[str, str] = {}
        self.origins: dict[str, tuple[Span, ...]] = {}

    def lookup(self, name: str, span: Span) -> Value | None:
        if name in self.targets:
            return read_operand(self.state, self.targets[name], span)
        value = self.values.get(name)
        leading = self.state.named_dims
        # A method that ran since may have named the dims that `*` stands for.
        if isinstance(value, Expression) and value.varies and leading is not None:
            return _retyped(value, leading)
        return value

    def known(self) -> list[str]:
        return [*self.targets, *self.values]

    def define(self, name: str, value: Value, span: Span) -> None:
        if name in self.values or name in self.targets:
            first = self.spans.get(name)
            raise error(
                "S215", f"`{name}` is already defined here", span, first and Label(first, "this")
            )
        self.values[name] = value
        self.spans[name] = span

    def arguments(self, closure: Closure) -> None:
        """Define what is given, then the defaults, which may speak of any of it."""
        formal = closure.definition.syntax.parameters
        for parameter in formal:
            value = closure.arguments.get(parameter.name)
            if value is not None:
                self.define(parameter.name, value, parameter.span)
                self.origins[parameter.name] = closure.origins.get(parameter.name, ())
        waiting = [p for p in formal if p.name not in closure.arguments and p.default]
        while waiting:
            names = {p.name for p in waiting}
            ready = [p for p in waiting if p.default and not names & mentioned(p.default)]
            for parameter in ready or waiting:
                if parameter.default is not None:
                    self.define(parameter.name, evaluate(parameter.default, self), parameter.span)
                    self.origins[parameter.name] = self.origin(parameter.default)
            waiting = [p for p in waiting if ready and p not in ready]

    def origin(self, e: syntax.Expression) -> tuple[Span, ...]:
        """Where the numbers in ``e`` were written: those of arguments, else ``e`` itself."""
        return origin_of(e, self.origins) or (e.span,)

    def demand(self, requirement: Requirement) -> None:
        """Hold what is required against what is known, and leave the rest to the site.

        Raises:
            SurgeryError: S404 or S240 where it does not hold, whatever the site.

        """
        if requirement.condition.known is False:
            raise unmet(requirement)
        if requirement.condition.known is None:
            self.state.notes.requirements.append(requirement)

    def call_block(self, block: Closure | Opaque, argument: Expression, span: Span) -> Expression:
        if block.kind != "block":
            raise error("S209", "a method is used with `apply`, not called", span)
        if isinstance(block, Opaque):
            return Expression("block", (argument,), (("name", block.name),), argument.shape, span)
        return run_block(block, argument, self.state, span)

    def step(self, step: syntax.Step) -> None:
        match step:
            case syntax.Require():
                held = condition(step.condition, self)
                self.demand(Requirement(held, step.span, self.origin(step.condition)))
            case syntax.Param():
                declare(step, self)
            case syntax.Let():
                self.define(step.name, evaluate(step.value, self), step.name_span)
                self.origins[step.name] = self.origin(step.value)
            case syntax.Draw():
                declare_draw(step, self)
            case syntax.Tune():
                self.state.notes.training += tuning(step, self)
            case syntax.Charge():
                self.state.notes.training.append(penalty_term(step.value, step.span, self))
            case syntax.After():
                self.state.notes.training.append(after_step(step, self))
                declare_clock(step.event_span, self)
            case _:
                raise error("S216", "this step has no place here", step.span)

    def evaluate(self, e: syntax.Expression) -> Value:
        return evaluate(e, self)


def run_block(closure: Closure, argument: Expression, state: State, span: Span) -> Expression:
    """Call a block on a tensor; its params join the state's."""
    block = closure.definition.syntax
    assert isinstance(block, syntax.Block)
    body = Body(closure.definition.scope, state, closure.path)
    with state.notes.depth.one_more(span):
        argument = bind_dims(block.input, argument, body)
        body.define(block.input.name, argument, block.input.span)
        body.arguments(closure)
        for step in block.body:
            if isinstance(step, syntax.Return):
                return tensor(evaluate(step.value, body), step.value.span)
            body.step(step)
    raise error("S216", f"`{block.name}` returns nothing", block.name_span)


def bind_dims(given: syntax.Operand, value: Expression, body: Body) -> Expression:
    """Let the names in ``given`` stand for the dims of ``value``; returns it with those dims."""
    if given.dims is None:
        return value
    names = [d for d in given.dims if not isinstance(d, syntax.Star)]
    starred = len(names) != len(given.dims)
    if starred and not isinstance(given.dims[0], syntax.Star):
        raise error("S212", "`*` must come first", given.span)
    if not starred and value.shape and value.shape[0] == STAR:
        leading = len(names) - len(value.shape) + 1
        if body.state.named_dims not in (None, leading):
            raise error(
                "S212", "another rule here names another number of leading dims", given.span
            )
        body.state.named_dims = leading
        spread(body.state, leading)
        value = _retyped(value, leading)
    fixed = value.shape[len(value.shape) - len(names) :]
    complete = starred or len(names) == len(value.shape)
    if len(fixed) != len(names) or not complete or (starred and STAR in fixed):
        raise error("S212", f"`{given.name}` is {show_shape(value.shape)}", given.span)
    for dim, size in zip(names, fixed, strict=True):
        if not isinstance(dim, syntax.Name):
            raise error("S212", "a pattern binds dims by plain names", dim.span)
        bound = body.values.get(dim.name)
        if bound is None:
            body.define(dim.name, size, dim.span)
        elif not isinstance(bound, Dim) or not body.shapes.equal(
            bound, size, f"`{dim.name}`", dim.span
        ):
            raise error("S211", f"`{dim.name}` names two different dims", dim.span)
    return value


def _leading(count: int) -> tuple[Dim, ...]:
    return tuple(Dim.named(f"*{i}") for i in range(count))


def _retyped(
    value: Expression, leading: int, known: dict[Expression, Expression] | None = None
) -> Expression:
    """``value`` with names for the leading dims of all its parts; parts that recur are ``known``."""
    known = {} if known is None else known
    if not value.varies:
        return value
    if value not in known:
        arguments = tuple(_retyped(part, leading, known) for part in value.arguments)
        named = (*_leading(leading), *value.shape[1:])
        shape = named if value.shape[:1] == (STAR,) else value.shape
        known[value] = Expression(value.op, arguments, value.attributes, shape, value.span)
    return known[value]


def spread(state: State, leading: int) -> None:
    """Name the leading dims that `*` stood for, in everything the operator reads and gives."""
    state.result = _retyped(state.result, leading)
    state.origin = _retyped(state.origin, leading)
    state.operands = {k: v and _retyped(v, leading) for k, v in state.operands.items()}
