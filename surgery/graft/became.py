"""What has become of layers since they were planned for, where that is in the way of a merge."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from surgery.anatomy.modules import all_modules, module_at
from surgery.graft.merged_layer import write_merged
from surgery.graft.state import named_modules
from surgery.planning.edit import Edit
from surgery.planning.fingerprint import dtype_name
from surgery.rules.expand import Wrapped


class Became:
    """The parameters of a model as they are now."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.held: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in all_modules(model):
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                self.held.setdefault(id(parameter), []).append((module, name))

    def replaced(self, edit: Edit) -> str | None:
        """Why what the layer of ``edit`` held cannot be written to any more, if so."""
        layer = edit.layer
        assert layer is not None
        table = module_at(self.model, edit.owner)._parameters
        size = prod(layer.held) if layer.held else layer.out * layer.into * max(1, layer.experts)
        for key, count in (("W", size), ("b", layer.out))[: 1 + layer.bias]:
            name = layer.names[key]
            held = table.get(name)
            if held is None:
                return f"the {name} is made of others since, as pruning and parametrizations do"
            if not (held.is_floating_point() or held.is_complex()) or held.numel() != count:
                return f"the {name} was replaced since, by {dtype_name(held)} {[*held.shape]}"
        return None

    def tied(self, edit: Edit) -> bool:
        """Whether anything else reads a tensor of the layer of ``edit``."""
        table = module_at(self.model, edit.owner)._parameters
        assert edit.layer is not None
        return any(len(self.held.get(id(table.get(n)), ())) > 1 for n in edit.layer.names.values())

    def changed(self, edit: Edit, wraps: list[Wrapped]) -> str | None:
        """What reads a tensor that merging ``wraps`` would change, and was tied to it since, in words."""
        assert edit.layer is not None
        module, names = module_at(self.model, edit.owner), edit.layer.names
        weight = module._parameters[names["W"]]
        assert weight is not None
        now = torch.empty_like(weight, requires_grad=False)
        bias = write_merged(self.model, edit, wraps, lambda: now)
        for name, value in ((names["W"], now), (names["b"], bias)):
            held = module._parameters.get(name)
            if held is None or value is None:
                continue
            others = [m for m, its in self.held[id(held)] if m is not module or its != name]
            if others and not torch.equal(held, value):
                path = next(p for p, m in named_modules(self.model) if m is others[0])
                return f"the {name} is tied with `{path}` since, which would change too"
        return None
