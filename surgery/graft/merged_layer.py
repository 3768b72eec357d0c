"""What the tensors of one layer become when methods are merged into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import module_at
from surgery.graft.initialise import by_expert, compute
from surgery.graft.sites import program_of
from surgery.planning.edit import Edit
from surgery.planning.layers import Layer
from surgery.rules.affine import NotAffine
from surgery.rules.expand import Wrapped
from surgery.rules.expression import Expression


@dataclass(frozen=True)
class MergedLayer:
    """What the weight of a layer becomes, and its bias if that is another; in the layer's form."""

    weight: Tensor
    bias: Tensor | None


@torch.no_grad()
def merged_layer(model: nn.Module, edit: Edit, wraps: list[Wrapped]) -> MergedLayer:
    """The layer of ``edit`` with the methods ``wraps`` merged, computed in float32 or wider."""
    module, layer = module_at(model, edit.owner), edit.layer
    found = program_of(edit, wraps).merge
    assert layer is not None
    assert not isinstance(found, NotAffine)
    weight, bias = (module._parameters.get(layer.names[n]) for n in ("W", "b"))
    # One that its module adds later is no part of the product.
    bias = bias if layer.bias else None
    assert weight is not None
    wide = torch.promote_types(weight.dtype, torch.float32)
    cache: dict[Expression, Tensor] = {}

    def value(e: Expression) -> Tensor:
        if e not in cache:
            if e.op == "operand":
                tensor = module._parameters[layer.names[e.name]]
            else:
                holder, _, name = e.name.rpartition(".")
                tensor = getattr(module_at(module, holder), name)
            assert tensor is not None
            cache[e] = tensor.detach().to(wide)
        return cache[e]

    if layer.experts:
        return MergedLayer(_each(found.weight, layer, edit, value, weight), None)
    matrix = compute(found.weight, layer, edit.sizes, value)
    offset = compute(found.bias, layer, edit.sizes, value)
    if not layer.adds or (not isinstance(offset, Tensor) and offset == 0 and bias is None):
        offset = None
    if layer.kind == "embedding" and offset is not None:
        # A one-hot input sums to one, so the bias is the same row added to each.
        matrix, offset = (
            matrix + (offset.unsqueeze(1) if isinstance(offset, Tensor) else offset),
            None,
        )
    shaped = matrix.t() if layer.kind in ("transposed", "embedding") else matrix
    merged = shaped.to(weight.dtype).reshape(weight.shape)
    if merged.stride() != weight.stride():
        merged = torch.empty_like(weight).copy_(merged)
    if offset is None:
        return MergedLayer(merged, None)
    full = torch.empty(layer.out, dtype=weight.dtype, device=weight.device)
    return MergedLayer(merged, full.copy_(torch.as_tensor(offset, device=weight.device)))


def _each(
    matrix: Expression,
    layer: Layer,
    edit: Edit,
    value: Callable[[Expression], Tensor],
    weight: Tensor,
) -> Tensor:
    """The merged weights of all experts, one computed after the other."""
    merged = torch.empty_like(weight)
    for i, into in enumerate(by_expert(merged, layer)):

        def one(e: Expression, i: int = i) -> Tensor:
            return (by_expert(value(e), layer) if e.op == "operand" else value(e))[i]

        found = compute(matrix, layer, edit.sizes, one)
        into.copy_(found.t() if layer.kind == "transposed" else found)
    return merged
