"""How the modules of a model read as layers of one kind or another (see surgery/layers)."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from surgery.anatomy.modules import all_modules
from surgery.language.diagnostics import error
from surgery.layers import LINEAR, Layer, kind_of
from surgery.planning.probe import product_of


def read_layer(module: nn.Module, parent: nn.Module | None = None) -> Layer | None:
    """How ``module`` reads as a linear layer, or None if it does not.

    A class with a forward of its own is no less a layer of its kind, but what it computes is told
    by trying; a module of no such class is one if it computes what `nn.Linear` does.

    Raises:
        SurgeryError: S420 for a layer that has no sizes before its first forward pass.

    """
    found = native_layer(module, parent)
    if found is None:
        return _alike(module)
    if found.native or found.read or not found.plain:
        return found
    if found.kind.features:
        product = product_of(module, found.kind.transposed)
        if product is not None and product.alone:
            return replace(found, among=product.index)
    return replace(found, read=True)


def is_known(module: nn.Module) -> bool:
    """Whether the class of ``module`` makes it a layer, so that nothing need be tried."""
    return kind_of(type(module)) is not None


def native_layer(module: nn.Module, parent: nn.Module | None = None) -> Layer | None:
    """How a module of a known class reads as a linear layer, without trying a forward of its own."""
    cls = type(module)
    found = kind_of(cls)
    if found is None:
        return None
    check_sizes(module)
    kind, known = found
    layer = kind.read(module)
    unchanged = all(getattr(cls, name) is getattr(known, name) for name in kind.methods)
    layer = replace(
        layer,
        bias=not kind.one_hot and _has_bias(module),
        native=layer.native and unchanged,
        plain=_holds(module),
    )
    if kind is LINEAR and isinstance(parent, nn.MultiheadAttention):
        return replace(layer, read=True, states=2)
    return layer


def check_sizes(module: nn.Module) -> None:
    """Refuse a module with parameters of which the sizes are not known yet.

    Raises:
        SurgeryError: S420 for a layer that has no sizes before its first forward pass.

    """
    if not any(_is_unsized(part) for part in all_modules(module)):
        return
    named = cast("list[tuple[str, nn.Module]]", list(module.named_modules()))  # pyright: ignore[reportUnknownArgumentType]
    for path, part in named:
        if _is_unsized(part):
            name = f"`{path}` (`{type(part).__name__}`)" if path else f"`{type(part).__name__}`"
            raise error(
                "S420",
                f"{name} has no sizes before its first forward pass",
                help="run the model once first",
            )


def _is_unsized(module: nn.Module) -> bool:
    return any(p is not None and is_lazy(p) for p in module._parameters.values())


def _holds(module: nn.Module) -> bool:
    """Whether the weight, and the bias if there is one, are parameters and nothing else.

    A property, a parametrization or a hook may make them of others.
    """
    weight = module._parameters.get("weight")
    if weight is None or not (weight.is_floating_point() or weight.is_complex()):
        return False
    held = ((name, module._parameters.get(name)) for name in ("weight", "bias"))
    return all(getattr(module, name, None) is parameter for name, parameter in held)


def packed_layer(module: nn.Module, weight: str) -> Layer | None:
    """The projections whose weights ``module`` holds as one, and which it reads itself."""
    held = module._parameters.get(weight)
    if held is None or held.dim() != 2 or not held.is_floating_point():
        return None
    offset = weight.removesuffix("weight") + "bias"
    bias = module._parameters.get(offset) is not None
    out, into = held.shape
    made = Layer(LINEAR, out, into, bias, read=True, weight=weight, offset=offset)
    return replace(made, states=3, length_first=True)


def _alike(module: nn.Module) -> Layer | None:
    """A module of another class that computes what `nn.Linear` does with its own weight."""
    product = product_of(module) if _holds(module) else None
    if product is None:
        return None
    out, into = module._parameters["weight"].shape  # type: ignore[union-attr]
    layer = Layer(LINEAR, out, into, _has_bias(module), native=False)
    return replace(layer, among=product.index) if product.alone else replace(layer, read=True)


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), torch.Tensor)
