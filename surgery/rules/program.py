"""All methods of one site folded into one expression, with what is derived from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from surgery.rules.acting import Lost, acting
from surgery.rules.affine import Merge, NotAffine, merge
from surgery.rules.checks import (
    check_divisors,
    check_requirements,
    check_shape,
    idle,
    refuse_schedules,
)
from surgery.rules.conditions import Requirement
from surgery.rules.cost import flops
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expand import Wrapped, wrap
from surgery.rules.expression import Expression, operand, walk
from surgery.rules.fold import folds
from surgery.rules.primitive import Primitive
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import Equation
from surgery.rules.signature import Signature
from surgery.rules.simplify import make, recording, same_value, substitute, value_of
from surgery.rules.state import State
from surgery.rules.trained import Trained, Tuning
from surgery.rules.values import Declaration


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
    applied: tuple[Wrapped, ...] = ()
    training: tuple[tuple[str, tuple[Trained, ...]], ...] = ()
    """What each method says of training."""

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
            return NotAffine(
                self.core,
                "an attention is not a linear layer, so there is no single weight to merge into",
            )
        if self.signature.kind == "tokens":
            return NotAffine(
                self.result,
                "tokens are not a linear layer, so there is no single weight to merge into",
            )
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
        return "host" in self._operations

    @cached_property
    def reads_residual(self) -> bool:
        """Whether the residual that joins the site's result is used."""
        return any(e.reads("residual") for e in self.changed)

    @property
    def is_random(self) -> bool:
        """Whether what the methods made draws random numbers in training."""
        return any(p.random for p in self._primitives)

    @property
    def reads_padding(self) -> bool:
        """Whether it asks which tokens are padding."""
        return any(p.form == "tokens" for p in self._primitives)

    @property
    def needs_real(self) -> str | None:
        """What occurs in it that there is of real numbers alone, by its name."""
        if "attend" in self._operations:
            return "attend"
        return next((p.name for p in self._primitives if p.real), None)

    @cached_property
    def _operations(self) -> frozenset[str]:
        return frozenset(e.op for changed in self.changed for e in walk(changed))

    @property
    def _primitives(self) -> Iterator[Primitive]:
        return (p for name, p in PRIMITIVES.items() if name in self._operations)

    def check(self, sizes: Mapping[str, Scalar]) -> None:
        """Hold the rules' requirements against a site's sizes.

        Raises:
            SurgeryError: S404 for an unmet `require`, S405 for dims that differ here, S406 for a
                param that would have no whole, positive size.

        """
        self.check_schedules()
        check_requirements(self.requirements, self.equations, sizes)
        for declaration in self.params:
            check_shape(declaration, sizes)
        check_divisors(self.changed, sizes)

    def check_schedules(self) -> None:
        """Refuse schedules where there is no step: in a forward, a size, or an optimizer's option.

        Raises:
            SurgeryError: S289.

        """
        numbers = [(d, p.span) for p in self.params for d in p.shape]
        said = [t for _, said in self.training for t in said if isinstance(t, Tuning)]
        values = dict.fromkeys(e for changed in self.changed for e in walk(changed))
        numbers += [(e.number, e.span) for e in values if e.number is not None and e.span]
        numbers += [(t.value, t.span) for t in said]
        refuse_schedules([*numbers, *((r.condition, r.span) for r in self.requirements)])

    def check_acting(
        self, sizes: Mapping[str, Scalar] | None = None, given: Iterable[Expression] = ()
    ) -> None:
        """Refuse params that could never act; ``sizes`` are those of a site.

        What is ``given`` to methods that are not known yet may act there.

        Raises:
            SurgeryError: S225 for the first.

        """
        results = [self.result, *([self.core] if self.core is not None else []), *given]
        found = acting(results, sizes)
        for declaration in self.params:
            if declaration.state:
                continue
            if declaration.name in (found.read if declaration.frozen else found.trained):
                continue
            raise idle(declaration, (*self.lost, *found.lost))

    @property
    def lost(self) -> tuple[Lost, ...]:
        """What the rules' own expressions dropped while they were read."""
        if not self.applied:
            return ()
        with recording() as dropped:
            fold_methods(self.signature, self.applied)
        return tuple(
            Lost(frozenset(e.name for e in d.lost if e.op == "param"), d.reason, d.span)
            for d in dropped
        )


@lru_cache(maxsize=4096)
def build(signature: Signature, applied: tuple[Wrapped, ...]) -> Program:
    """Fold the methods of a site, in the order written.

    Raises:
        SurgeryError: where a method does not fit the operator or what stands before it.

    """
    return fold_methods(signature, applied)


def fold_methods(signature: Signature, applied: tuple[Wrapped, ...]) -> Program:
    """As :func:`build`, always anew."""
    state = signature.operator()
    base, core = state.result, state.core and state.core.result
    groups: list[tuple[str, tuple[Declaration, ...]]] = []
    training: list[tuple[str, tuple[Trained, ...]]] = []
    for wrapped in applied:
        said = len(state.notes.training)
        groups.append((wrapped.child, tuple(wrap(state, wrapped))))
        # What a folded network was trained by went with it.
        training.append(
            (wrapped.child, tuple(() if wrapped.folded else state.notes.training[said:]))
        )
    if state.kind in ("linear", "module") and not state.result.varies:
        # The same for every input, and as often as there are inputs.
        state.result = make("spread", (state.result, base), base.shape)
    program = assemble(signature, base, core, state, tuple(groups))
    return replace(program, applied=applied, training=tuple(training))


def assemble(
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
