"""How methods act on a weight that other code reads: as another weight, or in its products."""

from __future__ import annotations

from surgery.planning.layers import Layer
from surgery.rules.affine import NotAffine
from surgery.rules.expression import number, operand
from surgery.rules.program import Program


def takes_offset(layer: Layer) -> bool:
    """Whether a bias of the layer is, or would be, added to what its weight gives."""
    return layer.bias or (not layer.held and layer.adds and layer.kind != "embedding")


def is_effective(program: Program, layer: Layer) -> bool:
    """Whether ``program`` acts as a weight and a bias would that stand in for the layer's own.

    If not, it has to act where the weight is multiplied with.
    """
    found = program.merge
    if isinstance(found, NotAffine) or program.uses("dropout"):
        return False
    return takes_offset(layer) or found.bias == number(0)


def needs_bias(program: Program, layer: Layer) -> bool:
    """Whether a merge of ``program`` would add to a product that nothing is added to."""
    found = program.merge
    if isinstance(found, NotAffine) or layer.bias or not (layer.held or not layer.adds):
        return False
    return found.bias != number(0)


def named(path: str | None) -> str:
    """A module in a sentence."""
    return f"`{path}`" if path else "the model"


def changed(program: Program, layer: Layer) -> list[str]:
    """Which of `W` and `b` a merge of ``program`` writes to; both if it has none."""
    found = program.merge
    if isinstance(found, NotAffine):
        return ["W", "b"]
    changed = ["W"] if found.weight != operand("W", ()) else []
    if found.bias != (operand("b", ()) if layer.bias else number(0)):
        changed.append("W" if layer.kind == "embedding" else "b")
    return changed
