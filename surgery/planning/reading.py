"""How methods act on a weight that other code reads: as another weight, or in its products."""

from __future__ import annotations

from surgery.layers import Layer
from surgery.rules.affine import Merge, NotAffine
from surgery.rules.expression import is_number, number, operand
from surgery.rules.program import Program
from surgery.rules.simplify import make
from surgery.rules.transposing import transposed


def takes_offset(layer: Layer) -> bool:
    """Whether a bias of the layer is, or would be, added to what its weight gives."""
    would = layer.native and layer.adds and not layer.held and not layer.kind.one_hot
    return layer.bias or would


def merged(program: Program, layer: Layer) -> Merge | NotAffine:
    """The weight and the bias that stand for ``program`` on ``layer``, or why there are none.

    One-hot ids have no bias: they sum to one, so it is in each column of the weight.
    """
    found = program.merge
    if isinstance(found, NotAffine) or not layer.kind.one_hot or is_number(found.bias, 0):
        return found
    table = transposed(found.weight)
    return Merge(transposed(make("add", (table, found.bias), table.shape)), number(0))


def is_effective(program: Program, layer: Layer) -> bool:
    """Whether ``program`` acts as a weight and a bias would that stand in for the layer's own.

    If not, it has to act where the weight is multiplied with: dropout, and an offset where none
    may be added.
    """
    found = merged(program, layer)
    if isinstance(found, NotAffine) or program.is_random:
        return False
    return takes_offset(layer) or is_number(found.bias, 0)


def needs_bias(program: Program, layer: Layer) -> bool:
    """Whether a merge of ``program`` would give a bias to a layer that has none."""
    found = merged(program, layer)
    return not (isinstance(found, NotAffine) or layer.bias or is_number(found.bias, 0))


def named(path: str | None) -> str:
    """A module in a sentence."""
    return f"`{path}`" if path else "the model"


def changed(program: Program, layer: Layer) -> list[str]:
    """Which of `W` and `b` a merge of ``program`` writes to; both if it has none."""
    found = merged(program, layer)
    if isinstance(found, NotAffine):
        return ["W", "b"]
    changed = ["W"] if found.weight != operand("W", ()) else []
    own = found.bias == operand("b", ()) if layer.bias else is_number(found.bias, 0)
    return changed if own else [*changed, "b"]
