"""What a program makes of embedded tokens, told as prompts in front, places filled, and a shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression


@dataclass
class TokenChange:
    """``prompts`` stand in front, in this order; ``places`` map ids to what replaces them."""

    prompts: list[Expression] = field(default_factory=list[Expression])
    places: list[tuple[int, Expression]] = field(default_factory=list[tuple[int, Expression]])
    shift: int = 0


def token_change(result: Expression, sizes: Mapping[str, Scalar]) -> TokenChange:
    """Take apart what methods made of the operator `tokens`."""
    change = TokenChange()
    while result.op != "tokens":
        if result.op == "cat":
            change.prompts.append(result.arguments[0])
        else:
            token = result.arguments[2].number
            assert token is not None
            change.places.append((int(token.value(sizes)), result.arguments[0]))
        result = result.arguments[1]
    positions = result.arguments[0] if result.arguments else None
    while positions is not None and positions.op == "add":
        positions, count = positions.arguments
        assert count.number is not None
        change.shift += int(count.number.value(sizes))
    return change
