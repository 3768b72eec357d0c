"""All methods of one site folded into one expression, with what is derived from it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.rules.affine import Merge, NotAffine, merge
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expand import Wrapped, apply_method, wrap
from surgery.rules.expression import STAR, Expression, operand, walk
from surgery.rules.fold import folds
from surgery.rules.frame import run_block
from surgery.rules.library import Definition
from surgery.rules.primitives import flops
from surgery.rules.shapes import Equation, show_shape
from surgery.rules.simplify import same_value, substitute, value_of
from surgery.rules.state import ATTENTION, Kind, Requirement, State, operator
from surgery.rules.values import Closure, Declaration, Opaque, Value


@dataclass(frozen=True)
class Signature:
    """What of a site decides how methods expand there; sizes do not."""

    kind: Kind
    bias: bool = False
    norm: bool = False
    residual: bool = False
    grouped: bool = False
    core: bool = False
    positions: bool = False

    def operator(self) -> State:
        """The operator before any method."""
        return operator(
            self.kind,
            bias=self.bias,
            norm=self.norm,
            residual=self.residual,
            grouped=self.grouped,
            core=self.core,
            positions=self.positions,
        )


@dataclass(frozen=True, eq=False)
class Program:
    """The result of an operator with all methods of a site in it, as a function of its input.

    ``core`` is the attention within it, with their effect, where there is one.
    """

    signature: Signature
    base: Expression
    result: Expression
    base_core: Expression | None
    core: Expression | None
    declarations: tuple[tuple[str, tuple[Declaration, ...]], ...]
    requirements: tuple[Requirement, ...]
    equations: tuple[Equation, ...]
    named_dims: int | None

    @cached_property
    def params(self) -> tuple[Declaration, ...]:
        return tuple(d for _, group in self.declarations for d in group)

    @property
    def changes_core(self) -> bool:
        return self.core != self.base_core

    @cached_property
    def only_reveals(self) -> bool:
        """Whether all that is done to the core is to put keys and values in front of its own."""
        if self.core is None or self.core.op != "attend":
            return self.core is None
        return all(
            _in_front(value) == operand(name, ())
            for name, value in zip("qkv", self.core.arguments, strict=False)
        )

    @property
    def changes_result(self) -> bool:
        return self.result != self.base

    @property
    def changed(self) -> tuple[Expression, ...]:
        """What methods have made another: the operator's result, its core, or both."""
        core = (self.core,) if self.core is not None and self.changes_core else ()
        return (self.result, *core) if self.changes_result or not core else core

    @property
    def before(self) -> Program:
        """The same without any method."""
        return replace(
            self,
            result=self.base,
            core=self.base_core,
            declarations=(),
            requirements=(),
            equations=(),
        )

    @cached_property
    def merge(self) -> Merge | NotAffine:
        if self.changes_core and self.core is not None:
            return NotAffine(self.core, "an attention is no linear layer, so it has no one weight")
        if self.signature.kind == "tokens":
            return NotAffine(self.result, "tokens are no linear layer, so they have no one weight")
        return merge(self.result, self.signature.grouped)

    @cached_property
    def is_identity(self) -> bool:
        """Whether the site computes the base's result until it is trained."""
        pairs = [(self.result, self.base)]
        if self.core is not None and self.base_core is not None:
            pairs.append((self.core, self.base_core))
        return all(same_value(at_start(e, self.params), base) for e, base in pairs)

    @cached_property
    def flops(self) -> Dim:
        """Floating-point operations added to the base's, for one position, before folding."""
        before = [self.base, *([self.base_core] if self.base_core else [])]
        after = [self.result, *([self.core] if self.core else [])]
        return _varying_flops(after) - _varying_flops(before)

    def folds(self, child: str) -> bool:
        """Whether a network that ``child`` brings makes no more than a constant."""
        core = (self.core,) if self.core is not None else ()
        places = (self.result,) if self.signature.kind == "tokens" else core
        return any(folds(e, child) for e in places)

    @cached_property
    def calls_norm(self) -> bool:
        """Whether the norm that follows the site is run."""
        return self.uses("host")

    @cached_property
    def reads_residual(self) -> bool:
        """Whether the residual that joins the site's result is used."""
        return any(e.reads("residual") for e in self.changed)

    def uses(self, op: str) -> bool:
        """Whether ``op`` occurs in what the methods made."""
        return any(e.op == op for changed in self.changed for e in walk(changed))

    def check(self, sizes: Mapping[str, Scalar]) -> None:
        """Hold the rules' requirements against a site's sizes.

        Raises:
            SurgeryError: S404 for an unmet `require`, S405 for dims that differ here, S406 for a
                param that would have no whole, positive size.

        """
        for requirement in self.requirements:
            known = {**sizes}
            if requirement.condition.names() <= known.keys() and not requirement.condition.holds(
                known
            ):
                inside = ", ".join(
                    f"{k} = {known[k]}" for k in sorted(requirement.condition.names())
                )
                raise error(
                    "S404",
                    f"this requirement does not hold here{f' ({inside})' if inside else ''}",
                    requirement.span,
                )
        for equation in self.equations:
            left, right = equation.left.value(sizes), equation.right.value(sizes)
            if left != right:
                raise error(
                    "S405", f"{equation.reason}: {left} is not {right} at this site", equation.span
                )
        for declaration in self.params:
            shape = [d.value(sizes) for d in declaration.shape]
            if any(not isinstance(d, int) or d < 1 for d in shape):
                raise error(
                    "S406",
                    f"`{declaration.name}` would be {[*shape]} here",
                    Label(declaration.span, f"declared {show_shape(declaration.shape)}"),
                )


@lru_cache(maxsize=4096)
def build(signature: Signature, applied: tuple[Wrapped, ...]) -> Program:
    """Fold the methods of a site, in the order written.

    Raises:
        SurgeryError: where a method does not fit the operator or what stands before it.

    """
    state = signature.operator()
    base, core = state.result, state.core and state.core.result
    groups = tuple((w.child, tuple(wrap(state, w))) for w in applied)
    return _program(signature, base, core, state, groups)


def fitting(closure: Closure) -> Signature:
    """A site with all that ``closure``, or the method it is a verb to, may match."""
    methods = [a for a in closure.arguments.values() if isinstance(a, Closure) and not a.is_block]
    if methods:
        return fitting(methods[0])
    body = closure.definition.syntax.body
    matched = next((s.operator for s in body if isinstance(s, syntax.Match)), "linear")
    return Signature(_kind(matched), bias=True, norm=True, residual=True, core=True, positions=True)


def _program(
    signature: Signature,
    base: Expression,
    core: Expression | None,
    state: State,
    groups: tuple[tuple[str, tuple[Declaration, ...]], ...],
) -> Program:
    return Program(
        signature,
        base,
        state.result,
        core,
        state.core and state.core.result,
        groups,
        tuple(state.notes.requirements),
        tuple(state.shapes.equations),
        state.named_dims,
    )


def _in_front(value: Expression) -> Expression:
    """``value`` without what was put in front of it."""
    while value.op == "cat":
        value = value.arguments[1]
    return value


def at_start(result: Expression, params: Iterable[Declaration]) -> Expression:
    """``result`` with the params as they start, where that is not random."""
    values: dict[Expression, Expression] = {}
    for d in params:
        if d.init.value is not None:
            start = substitute(value_of(d.init.value), values)
            values[Expression("param", (), (("name", d.name),))] = start
    return substitute(value_of(result), values)


def _varying_flops(results: Iterable[Expression]) -> Dim:
    total = Dim.of(0)
    for e in dict.fromkeys(e for result in results for e in walk(result)):
        if e.varies:
            total = total + flops(e)
    return total


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
    signature = Signature(
        state.kind, bias=True, norm=True, residual=True, core=core is not None, positions=True
    )
    groups = ((method.name, tuple(state.notes.declarations)),)
    program = _program(signature, base, core, state, groups)
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
    for d in state.notes.declarations:
        if d.name not in used:
            raise error(
                "S224", f"`{d.name}` is declared and never used, so it would never train", d.span
            )
