"""How a site starts, in a phrase: the identity, or that if what a verb takes is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from surgery.rules.expression import Expression, number, rebuild, walk
from surgery.rules.program import Program, at_start
from surgery.rules.simplify import make, same_value, value_of


def starts_of(program: Program) -> tuple[str, bool]:
    """How a site starts; a verb's block is taken to start as zero, and that is said."""
    if program.is_identity:
        return "identity at init", True
    blocks = {str(e.attribute("name")) for e in walk(program.result) if e.op == "block"}
    result = at_start(program.result, program.params)
    if blocks and same_value(_without_blocks(result), program.base):
        return f"identity at init if `{'` and `'.join(sorted(blocks))}` is zero at init", False
    return "changes the output at initialization", False


def starts_if(program: Program, methods: Collection[str]) -> str:
    """How a site starts where ``methods`` leave it as it is."""

    def change(e: Expression) -> Expression | None:
        return e.arguments[0] if e.op == "block" and e.name in methods else None

    base = replace(program, result=rebuild(program.result, change))
    starts, is_identity = starts_of(base)
    held = " and ".join(f"`{m}`" for m in methods)
    return (
        f"identity at init if {held} {'is' if len(methods) == 1 else 'are'}"
        if is_identity
        else starts
    )


def _without_blocks(result: Expression) -> Expression:
    def built(old: Expression, arguments: tuple[Expression, ...]) -> Expression:
        return make(old.op, arguments, old.shape, old.attributes, old.span)

    return value_of(rebuild(result, lambda e: number(0) if e.op == "block" else None, built))
