"""What a program makes of embedded tokens: prompts in front, places filled, a shift, and who sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression


@dataclass
class TokenChange:
    """``prompts`` stand in front, in this order; ``places`` map ids to what replaces them.

    ``joined`` is how many vectors the prompts are; ``unseen`` how many no decoder attends to, in
    encoder-decoders (T5, BART) with `encoder_only`.
    """

    prompts: list[Expression] = field(default_factory=list[Expression])
    places: list[tuple[int, Expression]] = field(default_factory=list[tuple[int, Expression]])
    joined: int = 0
    shift: int = 0
    unseen: int = 0


def token_change(result: Expression, sizes: Mapping[str, Scalar]) -> TokenChange:
    """Take apart what methods made of the operator `tokens`."""
    change = TokenChange()
    while result.op != "tokens":
        if result.op == "cat":
            prompt = result.arguments[0]
            change.prompts.append(prompt)
            change.joined += int(prompt.shape[-2].value(sizes))
        else:
            token = result.arguments[2].number
            assert token is not None
            change.places.append((int(token.value(sizes)), result.arguments[0]))
        result = result.arguments[1]
    for argument in result.arguments:
        operand, count = _counted(argument, sizes)
        if operand == "positions":
            change.shift = count
        else:
            change.unseen = count
    return change


def _counted(expression: Expression, sizes: Mapping[str, Scalar]) -> tuple[str, int]:
    """An operand, and what is added to or subtracted from it."""
    total = 0
    while expression.op in ("add", "subtract"):
        expression, count = expression.arguments
        assert count.number is not None
        total += int(count.number.value(sizes))
    return expression.name, total
