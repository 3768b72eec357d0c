"""Methods and blocks given their arguments: calls, and chains of verbs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

from surgery.language import syntax
from surgery.language.diagnostics import Label, did_you_mean, error
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression
from surgery.rules.library import Definition, Scope
from surgery.rules.limits import bounded
from surgery.rules.loops import refuse_loops
from surgery.rules.mentions import names_in, useful
from surgery.rules.primitive import Primitive
from surgery.rules.values import Closure, Opaque, Value, describe


class Binder(Protocol):
    """What binding asks of the names around it."""

    scope: Scope

    def lookup(self, name: str, span: Span) -> Value | None: ...
    def origin(self, e: syntax.Expression) -> tuple[Span, ...]: ...
    def evaluate(self, e: syntax.Expression) -> Value: ...


def bind(
    definition: Definition,
    arguments: tuple[syntax.Argument, ...],
    span: Span,
    names: Binder,
    operand: Value | None = None,
) -> Closure:
    """Give a method or block its arguments; missing ones take their defaults when it runs.

    Raises:
        SurgeryError: S208 for an unknown, repeated, missing or unfit argument; S209 for an
            ``operand`` that is not taken; S241 if what is bound uses itself; S245 for an argument
            that nothing uses beside the others.

    """
    refuse_loops(definition)
    waiting = list(definition.syntax.parameters)
    values: dict[str, Value] = {}
    origins: dict[str, tuple[Span, ...]] = {}
    if operand is not None:
        taker = _taker(definition, {a.name for a in arguments}, span)
        values[taker.name] = _fit(taker, operand, span, definition)
        waiting.remove(taker)
    given: list[str] = []
    for argument in arguments:
        value = names.evaluate(argument.value)
        parameter = _parameter(definition, argument, waiting, values)
        waiting = [p for p in waiting if p is not parameter]
        given.append(parameter.name)
        values[parameter.name] = _fit(parameter, value, argument.value.span, definition)
        origins[parameter.name] = names.origin(argument.value)
    _check_complete(definition, waiting, span)
    # Only now: what an argument is used for depends on which others are given.
    for argument, name in zip(arguments, given, strict=True):
        _check_use(definition, argument, name, values)
    made = Closure(definition, values, span, origins=origins)
    bounded(made, span)
    return made


def _taker(definition: Definition, given: Collection[str | None], span: Span) -> syntax.Parameter:
    """The parameter of a verb that takes what stands behind it.

    It is the last that takes a method or a block and is not ``given``; of some with defaults and
    some without, the last without.
    """
    open_ = [p for p in definition.syntax.parameters if p.kind != "value" and p.name not in given]
    if open_:
        return next((p for p in reversed(open_) if p.default is None), open_[-1])
    raise error(
        "S209",
        f"`{definition.name}` is not a verb: it does not take a method or a block",
        span,
        Label(definition.syntax.name_span, "defined here"),
    )


def _parameter(
    definition: Definition,
    argument: syntax.Argument,
    waiting: list[syntax.Parameter],
    values: Collection[str],
) -> syntax.Parameter:
    """The parameter that ``argument`` is for: the one it names, or the first that is ``waiting``."""
    formal = definition.syntax.parameters
    if argument.name is None:
        if waiting:
            return waiting[0]
        raise error(
            "S208",
            f"`{definition.name}` takes {len(formal)} arguments, and more are given",
            argument.span,
        )
    found = next((p for p in formal if p.name == argument.name), None)
    if found is None:
        known = [p.name for p in formal]
        raise error(
            "S208",
            f"`{definition.name}` has no argument `{argument.name}`",
            argument.span,
            Label(definition.syntax.name_span, "defined here"),
            help=did_you_mean(argument.name, known) or f"it takes {', '.join(known) or 'none'}",
        )
    if found.name in values:
        raise error("S208", f"`{found.name}` is given twice", argument.span)
    return found


def _check_complete(
    definition: Definition, waiting: Collection[syntax.Parameter], span: Span
) -> None:
    missing = [p for p in waiting if p.default is None]
    if missing:
        raise error(
            "S208",
            f"`{definition.name}` needs {' and '.join(f'`{p.name}`' for p in missing)}",
            span,
            Label(definition.syntax.name_span, "defined here"),
            help=f"write {_example(definition)}",
        )


def _check_use(
    definition: Definition, argument: syntax.Argument, name: str, values: Collection[str]
) -> None:
    if name in useful(definition.syntax, values):
        return
    formal = definition.syntax.parameters
    reader = next(
        (p.name for p in formal if p.default and name in names_in(p.default) and p.name in values),
        None,
    )
    why = f"only says what `{reader}` is, which is given" if reader else "is used by nothing"
    others = ", ".join(p.name for p in formal if p.name not in values)
    raise error(
        "S245",
        f"`{name}` of `{definition.name}` {why}",
        argument.span,
        Label(next(p.span for p in formal if p.name == name), "declared here"),
        help=f"leave it out{f', or name the one that is meant: {others}' if others else ''}",
    )


def _example(definition: Definition) -> str:
    parts = [f"{p.name} = …" for p in definition.syntax.parameters if p.default is None]
    return f"`{definition.name}({', '.join(parts)})`"


def _fit(parameter: syntax.Parameter, value: Value, span: Span, definition: Definition) -> Value:
    if parameter.kind == "value":
        if isinstance(value, Dim | Expression | Primitive | str):
            return value
        raise error(
            "S208",
            f"`{parameter.name}` of `{definition.name}` is a value, and this is {describe(value)}",
            span,
            Label(parameter.span, "declared here"),
        )
    if isinstance(value, Closure | Opaque) and value.kind == parameter.kind:
        return value
    raise error(
        "S209",
        f"`{definition.name}` takes a {parameter.kind}, and this is {describe(value)}",
        span,
        Label(parameter.span, "declared here"),
        help=_suggest(parameter.kind, value),
    )


def _suggest(kind: str, value: Value) -> str:
    if isinstance(value, Closure) and value.is_block:
        name = value.definition.name
        return f"a verb makes a method of a block: `sequential {name}(…)` or `parallel {name}(…)`"
    return "a block, such as `adapter(…)`" if kind == "block" else "a method, such as `lora(…)`"


def chain(application: syntax.Application, names: Binder) -> Closure:
    """`gated sequential adapter(48)` as nested closures.

    Raises:
        SurgeryError: S201 and S208 as for :func:`bind`; S209 where verbs and methods do not fit.

    """
    local = names.lookup(application.name, application.name_span)
    if isinstance(local, Closure) and application.operand is None:
        return _override(local, application, names)
    definition = names.scope.require(application.name, application.name_span)
    operand = chain(application.operand, names) if application.operand else None
    return bind(definition, application.arguments, application.name_span, names, operand)


def _override(closure: Closure, application: syntax.Application, names: Binder) -> Closure:
    """`apply m(gate = …)`: the method passed in, with some arguments replaced."""
    formal = {p.name: p for p in closure.definition.syntax.parameters}
    values, origins = dict(closure.arguments), dict(closure.origins)
    for argument in application.arguments:
        if argument.name is None or argument.name not in formal:
            raise error(
                "S210",
                f"`{closure.definition.name}` has no argument `{argument.name or '…'}` to be given here",
                closure.span,
                Label(argument.span, "given here"),
                help=f"a method that can be used so declares it: `method {closure.definition.name}(…, {argument.name or 'gate'} = 1)`",
            )
        values[argument.name] = names.evaluate(argument.value)
        origins[argument.name] = names.origin(argument.value)
    made = replace(closure, arguments=values, origins=origins)
    bounded(made, application.span)
    return made
