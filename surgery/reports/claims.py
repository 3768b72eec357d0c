"""What is proved of a method or block from its rule alone: start, merge, sizes, cost.

No model is needed, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError
from surgery.planning.spec import Spec
from surgery.reports.change import change_of
from surgery.reports.starts import starts_if, starts_of
from surgery.rules.affine import Merge
from surgery.rules.cost import flops
from surgery.rules.dims import Dim
from surgery.rules.expression import (
    IN,
    OUT,
    STAR,
    Expression,
    is_number,
    number,
    operand,
    param,
    rebuild,
    walk,
)
from surgery.rules.library import Definition
from surgery.rules.program import Program, at_start, build
from surgery.rules.shapes import show_shape
from surgery.rules.simplify import substitute
from surgery.rules.standalone import check_block, check_method, fitting
from surgery.rules.values import Declaration


@dataclass(frozen=True)
class Claims:
    """All that a rule promises. ``merge`` gives weight and bias; without one, ``reason`` is why."""

    name: str
    kind: Literal["method", "verb", "block"]
    doc: str | None
    source: str
    arguments: str
    formula: str
    starts: str
    is_identity: bool
    merge: dict[str, str] | None
    brings_bias: bool
    reason: str | None
    parameters: tuple[Declaration, ...]
    elements: str
    flops: str
    requires: tuple[str, ...]

    @property
    def merges(self) -> str:
        """The merge in a phrase."""
        if self.kind == "block":
            return "as decided by the verb that takes it"
        if self.merge is None:
            verb = "merges" if self.reason and self.reason.startswith("as") else "cannot be merged:"
            return f"{verb} {self.reason}"
        return merging(self.merge, self.brings_bias)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data; sizes are polynomials of the site's dims and the arguments."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**held, "parameters": [_declared(d) for d in self.parameters]}


def _declared(d: Declaration) -> dict[str, Any]:
    shape, init = show_shape(d.shape), str(d.init)
    return {"name": d.name, "shape": shape, "init": init, "frozen": d.frozen, "shared": d.shared}


def claims_of(definition: Definition) -> Claims:
    """Prove what can be proved of ``definition``.

    Raises:
        SurgeryError: S2xx where the rule contradicts itself.

    """
    named = _sizes(definition.syntax)
    if isinstance(definition.syntax, syntax.Block):
        return _block(definition, definition.syntax, named)
    facts = check_method(definition)
    try:
        program = check_method(definition, named).program
    except SurgeryError:
        program = facts.program
    starts, is_identity = starts_of(facts.program)
    merge, reason = merge_of(program)
    formula = change_of(program.before, program)
    methods = [p.name for p in definition.syntax.parameters if p.kind == "method"]
    if methods:
        starts, (merge, reason) = starts_if(facts.program, methods), _merges_if(program, methods)
    return _claims(
        definition,
        "verb" if facts.is_verb else "method",
        formula=formula,
        starts=starts,
        is_identity=is_identity,
        merge=merge,
        brings_bias=brings_bias(program),
        reason=reason,
        declared=program.params,
        cost=program.flops,
        requires=tuple(
            _words(r.span.text).removeprefix("require ")
            for r in program.requirements
            if r.words is None
        ),
    )


def merge_of(program: Program) -> tuple[dict[str, str] | None, str | None]:
    """The merged weight and bias, or why there are none, with the place in the rule."""
    found = program.merge
    if isinstance(found, Merge):
        return {"weight": str(found.weight), "bias": str(found.bias)}, None
    place = f" ({found.span})" if found.span else ""
    return None, f"{found.reason}{place}"


def merging(merge: dict[str, str], brings_bias: bool) -> str:
    """A merge in a phrase."""
    shown = f"merges: {', '.join(f'{k} = {v}' for k, v in merge.items())}"
    return f"{shown} (adds a bias where there is none)" if brings_bias else shown


def brings_bias(program: Program) -> bool:
    """Whether merging gives a bias to a layer that has none."""
    found = program.merge
    if not isinstance(found, Merge):
        return False
    without = substitute(found.bias, {operand("b", found.bias.shape): number(0)})
    return not is_number(without, 0)


@dataclass(frozen=True)
class Stated:
    """What a spec's `on` statement comes to wherever its method fits."""

    place: str
    method: str
    starts: str
    is_identity: bool
    merge: dict[str, str] | None
    brings_bias: bool
    reason: str | None


def stated(spec: Spec) -> Iterator[Stated]:
    """The claims of each `on` of ``spec``, before any model is seen."""
    for order, statement in enumerate(spec.statements):
        if not isinstance(statement, syntax.On):
            continue
        wrapped = spec.wrapped(order)
        program = build(fitting(wrapped.closure), (wrapped,))
        starts, is_identity = starts_of(program)
        merge, reason = merge_of(program)
        prefix = f"{wrapped.child}."
        shown = merge and {k: v.replace(prefix, "") for k, v in merge.items()}
        place = str(statement.span).rpartition(":")[0]
        method = _words(statement.application.span.text)
        yield Stated(place, method, starts, is_identity, shown, brings_bias(program), reason)


def _block(definition: Definition, block: syntax.Block, named: set[str]) -> Claims:
    declared, value = check_block(definition)
    is_zero = is_number(at_start(value, declared), 0)
    with suppress(SurgeryError):
        declared, value = check_block(definition, named)
    cost = Dim.of(0)
    for e in walk(value):
        cost = cost + (flops(e) if e.varies else 0)
    return _claims(
        definition,
        "block",
        formula=str(value).replace("(x", f"({block.input.name}"),
        starts="zero at init" if is_zero else "not zero at init",
        is_identity=is_zero,
        merge=None,
        brings_bias=False,
        reason=None,
        declared=declared,
        cost=cost,
        requires=(),
    )


def _claims(
    definition: Definition,
    kind: Literal["method", "verb", "block"],
    *,
    formula: str,
    starts: str,
    is_identity: bool,
    merge: dict[str, str] | None,
    brings_bias: bool,
    reason: str | None,
    declared: tuple[Declaration, ...],
    cost: Dim,
    requires: tuple[str, ...],
) -> Claims:
    node = definition.syntax
    inside = ", ".join(p.span.text for p in node.parameters)
    total = Dim.of(0)
    for d in declared:
        size = Dim.of(1)
        for dim in d.shape:
            size = size * dim
        total = total + size
    return Claims(
        node.name,
        kind,
        node.doc,
        node.span.source.name,
        _words(inside),
        formula,
        starts,
        is_identity,
        merge,
        brings_bias,
        reason,
        declared,
        str(total),
        _plain(cost),
        requires,
    )


def _merges_if(program: Program, methods: Collection[str]) -> tuple[None, str | None]:
    """How a rule merges where ``methods`` do, at a linear layer."""
    x = operand("x", (STAR, IN))

    def change(e: Expression) -> Expression | None:
        if e.op == "base" or (e.op == "block" and e.name in methods):
            weight = param(e.name if e.op == "block" else "W", (OUT, IN))
            return Expression("linear", (x, weight), (), (STAR, OUT))
        return None

    if program.changes_core or program.signature.kind == "tokens":
        return None, merge_of(program)[1]
    _, reason = merge_of(replace(program, result=rebuild(program.result, change)))
    held = " and ".join(f"`{m}`" for m in methods)
    return None, reason or f"as {held} {'does' if len(methods) == 1 else 'do'}"


def _words(text: str) -> str:
    return " ".join(text.split())


def _sizes(node: syntax.Method | syntax.Block) -> set[str]:
    """The arguments that the sizes of params are written with."""
    formal = {p.name for p in node.parameters if p.kind == "value"}
    params = [s for s in node.body if isinstance(s, syntax.Param)]
    return {dim.name for p in params for dim in p.dims if isinstance(dim, syntax.Name)} & formal


def _plain(dim: Dim) -> str:
    """A polynomial without the marks of dims that a rule leaves unnamed."""
    return str(dim).replace("?out", "n").replace("?in", "m")
