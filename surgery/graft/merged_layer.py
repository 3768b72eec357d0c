"""What the tensors of one layer become when methods are merged into them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import module_at
from surgery.graft.computing import by_expert, compute, run
from surgery.graft.sites import program_of
from surgery.layers import Layer
from surgery.planning.edit import Edit
from surgery.planning.reading import merged
from surgery.rules.affine import NotAffine
from surgery.rules.expand import Wrapped
from surgery.rules.expression import Expression


@torch.no_grad()
def write_merged(
    model: nn.Module, edit: Edit, wraps: list[Wrapped], room: Callable[[], Tensor]
) -> Tensor | None:
    """Merge the methods ``wraps`` into the layer of ``edit``, and write its weight into a ``room``.

    It is computed in float32 or wider and rounded once. The room has the form of the weight, and
    may be it. It is asked for when what was computed on the way is gone, and takes its place: what
    lasts would else stand in the memory between.

    Returns:
        What the bias becomes, if it is another.

    """
    module, layer = module_at(model, edit.owner), edit.layer
    assert layer is not None
    found = merged(program_of(edit, wraps), layer)
    assert not isinstance(found, NotAffine)
    operands = _Operands(module, layer)
    if layer.experts:
        into = room()
        for i, part in enumerate(by_expert(into, layer)):
            made = compute(found.weight, layer, edit.sizes, operands.of_expert(i))
            part.copy_(layer.kind.as_weight(run, layer, made))
        return None
    matrix = compute(found.weight, layer, edit.sizes, operands)
    offset = compute(found.bias, layer, edit.sizes, operands)
    # One that its module adds later is no part of the product.
    own = layer.bias and module._parameters.get(layer.names["b"]) is not None
    if not layer.adds or (not isinstance(offset, Tensor) and offset == 0 and not own):
        offset = None
    shaped = layer.as_weight(run, matrix)
    operands.known.clear()
    into = room()
    into.copy_(shaped.reshape(into.shape))
    if offset is None:
        return None
    full = torch.empty(layer.out, dtype=into.dtype, device=into.device)
    return full.copy_(torch.as_tensor(offset, device=into.device))


class _Operands:
    """What the expressions of a merge read, in float32 or wider, each converted once."""

    def __init__(self, module: nn.Module, layer: Layer):
        self.module = module
        self.layer = layer
        weight = module._parameters[layer.names["W"]]
        assert weight is not None
        self.wide = torch.promote_types(weight.dtype, torch.float32)
        self.known: dict[Expression, Tensor] = {}

    def __call__(self, expression: Expression) -> Tensor:
        if expression not in self.known:
            self.known[expression] = self._own(expression).to(self.wide)
        return self.known[expression]

    def of_expert(self, number: int) -> Callable[[Expression], Tensor]:
        """Those of one expert alone."""

        def value(expression: Expression) -> Tensor:
            own = self._own(expression)
            held = by_expert(own, self.layer) if expression.op == "operand" else own
            return held[number].to(self.wide)

        return value

    def _own(self, expression: Expression) -> Tensor:
        if expression.op == "operand":
            tensor = self.module._parameters[self.layer.names[expression.name]]
        else:
            holder, _, name = expression.name.rpartition(".")
            tensor = getattr(module_at(self.module, holder), name)
        assert tensor is not None
        return tensor.detach()
