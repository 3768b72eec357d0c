"""All methods of one site folded into one expression, with what is derived from it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from surgery.language import syntax
from surgery.language.diagnostics import Label, error
from surgery.rules.affine import Merge, NotAffine, merge
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expand import Wrapped, apply_method, wrap
from surgery.rules.expression import Expression, walk
from surgery.rules.frame import run_block
from surgery.rules.library import Definition
from surgery.rules.primitives import flops
from surgery.rules.shapes import Equation, show_shape
from surgery.rules.simplify import same_value, substitute, value_of
from surgery.rules.state import Kind, Requirement, State, operator
from surgery.rules.values import Closure, Declaration, Opaque, Value


@dataclass(frozen=True)
class Signature:
    """What of a site decides how methods expand there; sizes do not."""

    kind: Kind
    bias: bool = False
    norm: bool = False
    residual: bool = False
    grouped: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """The result of an operator with all methods of a site in it, as a function of its input."""

    signature: Signature
    base: Expression
    result: Expression
    declarations: tuple[tuple[str, tuple[Declaration, ...]], ...]
    requirements: tuple[Requirement, ...]
    equations: tuple[Equation, ...]
    named_dims: int | None

    @cached_property
    def params(self) -> tuple[Declaration, ...]:
        return tuple(d for _, group in self.declarations for d in group)

    @cached_property
    def merge(self) -> Merge | NotAffine:
        return merge(self.result, self.signature.grouped)

    @cached_property
    def is_identity(self) -> bool:
        """Whether the site computes the base's result until it is trained."""
        return same_value(at_start(self.result, self.params), self.base)

    @cached_property
    def flops(self) -> Dim:
        """Floating-point operations added to the base's, for one position, before folding."""
        return _varying_flops(self.result) - _varying_flops(self.base)

    @cached_property
    def calls_norm(self) -> bool:
        """Whether the norm that follows the site is run."""
        return any(e.op == "host" for e in walk(self.result))

    @cached_property
    def reads_residual(self) -> bool:
        """Whether the residual that joins the site's result is used."""
        return self.result.reads("residual")

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
    state = operator(
        signature.kind,
        bias=signature.bias,
        norm=signature.norm,
        residual=signature.residual,
        grouped=signature.grouped,
    )
    base = state.result
    groups = tuple((w.child, tuple(wrap(state, w))) for w in applied)
    return _program(signature, base, state, groups)


def _program(
    signature: Signature,
    base: Expression,
    state: State,
    groups: tuple[tuple[str, tuple[Declaration, ...]], ...],
) -> Program:
    return Program(
        signature,
        base,
        state.result,
        groups,
        tuple(state.requirements),
        tuple(state.shapes.equations),
        state.named_dims,
    )


def at_start(result: Expression, params: Iterable[Declaration]) -> Expression:
    """``result`` with the params as they start, where that is not random."""
    values: dict[Expression, Expression] = {}
    for d in params:
        if d.init.value is not None:
            start = substitute(value_of(d.init.value), values)
            values[Expression("param", (), (("name", d.name),))] = start
    return substitute(value_of(result), values)


def _varying_flops(result: Expression) -> Dim:
    total = Dim.of(0)
    for e in walk(result):
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
    kind: Kind = "linear" if pattern.operator == "linear" else "module"
    out = _last_name(pattern.result) or Dim.named("?out")
    into = (_last_name(pattern.operands[0]) if pattern.operands else None) or Dim.named("?in")
    state = operator(kind, bias=True, norm=True, residual=True, strict=True, out=out, into=into)
    base = state.result
    apply_method(Closure(definition, _stand_ins(method, named), method.name_span), state)
    if not state.changed:
        raise error(
            "S223",
            f"`{method.name}` changes nothing",
            method.name_span,
            help="assign the result or an operand of the match: `y += …`",
        )
    _check_used(state)
    signature = Signature(kind, True, True, True)
    program = _program(signature, base, state, ((method.name, tuple(state.declarations)),))
    return Facts(program, any(p.kind != "value" for p in method.parameters))


def check_block(
    definition: Definition, named: Container[str] = ()
) -> tuple[tuple[Declaration, ...], Expression]:
    """Read a block by itself; returns its params and its value."""
    state = operator("module", strict=True, out=Dim.named("d"), into=Dim.named("d"))
    stand_ins = _stand_ins(definition.syntax, named)
    closure = Closure(definition, stand_ins, definition.syntax.name_span)
    x = state.operands["x"]
    assert x is not None
    value = run_block(closure, x, state, definition.syntax.name_span)
    return tuple(state.declarations), value


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
    used = {leaf.name for leaf in state.result.leaves if leaf.op == "param"}
    used |= {leaf.name for value in state.given for leaf in value.leaves if leaf.op == "param"}
    for d in state.declarations:
        if d.name not in used:
            raise error(
                "S224", f"`{d.name}` is declared and never used, so it would never train", d.span
            )
