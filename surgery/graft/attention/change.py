"""What a program changes of an attention's core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CoreFunctions:
    """What a program makes of one attention core.

    ``attend`` takes the arguments of `scaled_dot_product_attention` and gives its result, both as the
    program has them. Where the core is another function, or written in several, the other functions
    say what becomes of each operand and of the result. They take and give [batch, heads, length, features]. Keys and values come as the core has
    them: with the model's heads or, where the model repeats these for its queries, with as many
    heads as there are queries' (one beside the other, as `repeat_interleave` does). ``key`` and
    ``value`` put ``revealed`` new ones in front of their argument, which may be of length 0;
    every query sees them. ``own`` is False if they do no more than that: then scores of the
    model's own keys need not be computed anew.
    """

    attend: Callable[..., Tensor] | None = None
    query: Function | None = None
    key: Function | None = None
    value: Function | None = None
    output: Function | None = None
    revealed: int = 0
    own: bool = True

    def __post_init__(self) -> None:
        if self.revealed and (self.key is None or self.value is None):
            raise ValueError("new keys and new values come together")
