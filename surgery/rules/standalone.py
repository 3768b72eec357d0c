"""A rule read by itself, before there is a model: what it would be at a site with all it may match."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache

from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError, error
from surgery.rules.body import run_block
from surgery.rules.dims import Dim
from surgery.rules.expand import apply_method
from surgery.rules.expression import STAR, Expression, operand
from surgery.rules.library import Definition
from surgery.rules.program import Program, assemble
from surgery.rules.signature import Signature
from surgery.rules.state import ATTENTION, Kind, State, operator
from surgery.rules.trained import CLOCK, read_in_training
from surgery.rules.values import Closure, Declaration, Opaque, Value


@dataclass(frozen=True)
class Facts:
    """What is derived of a method on its own, with names for its dims."""

    program: Program
    is_verb: bool


def check_method(definition: Definition, named: Container[str] = ()) -> Facts:
    """Read a method by itself: dims by name, arguments at their defaults.

    Those in ``named`` stay names, too, so that sizes come out as polynomials in them.

    Raises:
        SurgeryError: where the rule contradicts itself.

    """
    method = definition.syntax
    assert isinstance(method, syntax.Method)
    pattern = next((s for s in method.body if isinstance(s, syntax.Match)), None)
    if pattern is None:
        raise error("S216", f"`{method.name}` has no `match`", method.name_span)
    state = _stand_in(pattern)
    base, core = state.result, state.core and state.core.result
    apply_method(Closure(definition, _stand_ins(method, named), method.name_span), state)
    if not state.notes.changed:
        raise error(
            "S223",
            f"`{method.name}` changes nothing",
            method.name_span,
            help="assign the result or an operand of the match: `y += …`",
        )
    _check_used(state)
    signature = _complete(state.kind, core is not None)
    groups = ((method.name, tuple(state.notes.declarations)),)
    program = assemble(signature, base, core, state, groups)
    _check_acting(definition, program, state, named)
    return Facts(program, any(p.kind != "value" for p in method.parameters))


def _stand_in(pattern: syntax.Match) -> State:
    """An operator that ``pattern`` matches, with the dims as it names them."""
    dims: dict[str, Dim] = {}
    if pattern.operator == "attention":
        for given, slots in zip(
            (pattern.result, *pattern.operands), ATTENTION.values(), strict=False
        ):
            for slot, dim in zip(slots, given.dims or (), strict=False):
                if isinstance(dim, syntax.Name) and not slot.startswith("*"):
                    dims[slot] = Dim.named(dim.name)
    out = _last_name(pattern.result) or Dim.named("?out")
    into = (_last_name(pattern.operands[0]) if pattern.operands else None) or Dim.named("?in")
    return operator(
        _kind(pattern.operator),
        norm=True,
        residual=True,
        strict=True,
        core=True,
        out=out,
        into=into,
        names=dims,
    )


def _kind(matched: str) -> Kind:
    """The kind of site at which an operator is found."""
    match matched:
        case "tokens":
            return "tokens"
        case "module" | "attention":
            return "module"
        case _:
            return "linear"


def check_block(
    definition: Definition, named: Container[str] = ()
) -> tuple[tuple[Declaration, ...], Expression]:
    """Read a block by itself; returns its params and its value."""
    state = operator("module", strict=True, out=Dim.named("d"), into=Dim.named("d"))
    stand_ins = _stand_ins(definition.syntax, named)
    closure = Closure(definition, stand_ins, definition.syntax.name_span)
    assert isinstance(definition.syntax, syntax.Block)
    dims = definition.syntax.input.dims or ()
    names = [Dim.named(d.name) if isinstance(d, syntax.Name) else STAR for d in dims]
    x = operand("x", tuple(names) or (STAR, Dim.named("d")))
    value = run_block(closure, x, state, definition.syntax.name_span)
    return tuple(state.notes.declarations), value


def _stand_ins(definition: syntax.Method | syntax.Block, named: Container[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for p in definition.parameters:
        if p.kind != "value":
            values[p.name] = Opaque(p.kind, p.name)
        elif p.default is None or p.name in named:
            values[p.name] = Dim.named(p.name)
    return values


def _last_name(operand: syntax.Operand) -> Dim | None:
    last = operand.dims[-1] if operand.dims else None
    return Dim.named(last.name) if isinstance(last, syntax.Name) else None


def _check_used(state: State) -> None:
    values = [state.result, *state.notes.given, *([state.core.result] if state.core else [])]
    used = {leaf.name for value in values for leaf in value.leaves if leaf.op == "param"}
    read = {leaf.name for v in read_in_training(state.notes.training) for leaf in v.leaves}
    for d in state.notes.declarations:
        if d.state and not d.name.endswith(CLOCK) and d.name not in used | read:
            raise error("S288", f"the state `{d.name}` is never read", d.span)
        if d.name not in used and not d.state:
            raise error(
                "S224", f"`{d.name}` is declared and never used, so it would never train", d.span
            )


def _check_acting(
    definition: Definition, program: Program, state: State, named: Container[str]
) -> None:
    """Refuse params that could not act whatever the arguments: defaults may switch them off."""
    try:
        program.check_acting(given=state.notes.given)
    except SurgeryError:
        numbers = [p.name for p in definition.syntax.parameters if p.kind == "value"]
        if all(name in named for name in numbers):
            raise
        try:
            check_method(definition, numbers)
        except SurgeryError as problem:
            if problem.diagnostics[0].code == "S225":
                raise


def fitting(closure: Closure) -> Signature:
    """A site with all that ``closure``, or the method it is a verb to, may match."""
    methods = [a for a in closure.arguments.values() if isinstance(a, Closure) and not a.is_block]
    if methods:
        return fitting(methods[0])
    body = closure.definition.syntax.body
    matched = next((s.operator for s in body if isinstance(s, syntax.Match)), "linear")
    return _complete(_kind(matched), core=True)


@lru_cache
def _complete(kind: Kind, core: bool) -> Signature:
    """A site that lacks nothing."""
    return Signature(
        kind, bias=True, norm=True, residual=True, core=core, positions=True, memory=True
    )
