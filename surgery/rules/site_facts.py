"""What the arguments of a statement may say of the site: `lora(r = 4 + index)`."""

from __future__ import annotations

from surgery.rules.dims import Dim
from surgery.rules.expression import IN, OUT
from surgery.rules.values import Closure

INDEX, LAYERS = Dim.named("index"), Dim.named("layers")
"""The number of the layer that a site is in, from 0, and how many there are in its stack."""
FACTS = {"index": INDEX, "layers": LAYERS, "n": OUT, "m": IN, "outputs": OUT, "inputs": IN}


def facts_in(closure: Closure) -> frozenset[str]:
    """The names of sizes and facts that the arguments of ``closure`` are made of."""
    found: frozenset[str] = frozenset()
    for value in closure.arguments.values():
        if isinstance(value, Dim):
            found |= value.names()
        elif isinstance(value, Closure):
            found |= facts_in(value)
    return found
