"""The names that the body of a method or block knows, and the steps that add to them."""

from __future__ import annotations

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.language.source import Span
from surgery.language.syntax import mentioned
from surgery.rules.conditions import Requirement
from surgery.rules.declaring import declare, declare_clock, declare_draw, origin_of
from surgery.rules.decomposing import unpack
from surgery.rules.dims import Dim
from surgery.rules.evaluate import condition, evaluate
from surgery.rules.expression import IN, OUT, STAR, Expression, operand, param
from surgery.rules.leading import named_leading, spread
from surgery.rules.library import Scope
from surgery.rules.named_dims import labelled
from surgery.rules.operands import tensor
from surgery.rules.placing import placed
from surgery.rules.ranges import unmet
from surgery.rules.shapes import show_shape
from surgery.rules.state import State, read_operand
from surgery.rules.trained import Trained
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
        self.labels: dict[str, tuple[str, ...]] = {}
        """What the match calls the dims of an operand, from the last on."""
        self.origins: dict[str, tuple[Span, ...]] = {}
        self.applied: list[str] = []

    def below(self, name: str) -> str:
        """Where the params of a method stand that the body applies; of a second one, `name_2`."""
        self.applied.append(name)
        count = self.applied.count(name)
        return f"{self.path}{name if count == 1 else f'{name}_{count}'}."

    def lookup(self, name: str, span: Span) -> Value | None:
        if name in self.targets:
            value = read_operand(self.state, self.targets[name], span)
            labels = self.labels.get(name, ())
            return labelled(value, labels) if isinstance(value, Expression) else value
        value = self.values.get(name)
        leading = self.state.named_dims
        # A method that ran since may have named the dims that `*` stands for.
        if isinstance(value, Expression) and value.varies and leading is not None:
            return named_leading(value, leading)
        return value

    def like(self) -> Expression | None:
        """What has the dtype of the rule's tensors: the weight, or a param."""
        if self.state.kind == "linear":
            return operand("W", (OUT, IN))
        declared = self.state.notes.declarations
        return param(declared[-1].name, declared[-1].shape) if declared else None

    def known(self) -> list[str]:
        return [*self.targets, *self.values]

    def define(self, name: str, value: Value, span: Span) -> None:
        if name in self.values or name in self.targets:
            first = self.spans.get(name)
            raise error(
                "S215", f"`{name}` is already defined here", span, first and Label(first, "this")
            )
        if isinstance(value, Closure):
            value = placed(value, f"{self.path}{name}.")
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
            case syntax.Unpack():
                for name, part in zip(step.names, unpack(step, self), strict=True):
                    self.define(name.name, part, name.span)
            case syntax.Draw():
                declare_draw(step, self)
            case syntax.Tune():
                self._said(*tuning(step, self))
            case syntax.Charge():
                self._said(penalty_term(step.value, step.span, self))
            case syntax.After():
                self._said(after_step(step, self))
                declare_clock(step.event_span, self)
            case _:
                raise error("S216", "this step has no place here", step.span)

    def _said(self, *training: Trained) -> None:
        """Note what is said of training; a method that is used twice says it once."""
        noted = self.state.notes.training
        noted += [said for said in training if said not in noted]

    def evaluate(self, e: syntax.Expression) -> Value:
        return evaluate(e, self)


def run_block(closure: Closure, argument: Expression, state: State, span: Span) -> Expression:
    """Call a block on a tensor; its params join the state's."""
    block = closure.definition.syntax
    assert isinstance(block, syntax.Block)
    body = Body(closure.definition.scope, state, closure.path or "")
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
        value = named_leading(value, leading)
    fixed = value.shape[len(value.shape) - len(names) :]
    complete = starred or len(names) == len(value.shape)
    if len(fixed) != len(names) or not complete or (starred and STAR in fixed):
        raise error("S212", f"`{given.name}` is {show_shape(value.shape)}", given.span)
    for dim, size in zip(names, fixed, strict=True):
        if not isinstance(dim, syntax.Name):
            raise error("S212", "a pattern binds dims by plain names", dim.span)
        bound = body.values.get(dim.name)
        if bound is None:
            body.define(dim.name, size.called(dim.name), dim.span)
        elif not isinstance(bound, Dim) or not body.shapes.equal(
            bound, size, f"`{dim.name}`", dim.span
        ):
            raise error("S211", f"`{dim.name}` names two different dims", dim.span)
    labels = tuple(dim.name for dim in names if isinstance(dim, syntax.Name))
    body.labels[given.name] = labels
    return labelled(value, labels)
