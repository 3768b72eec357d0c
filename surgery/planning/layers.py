"""Kinds of layer that read as the operator `linear`, and their sizes.

A convolution is a linear map over patches and an embedding one over one-hot ids, so each kind
only says how its weight is a matrix [n, m].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from surgery.anatomy.modules import all_modules
from surgery.anatomy.site import Experts, Matrix
from surgery.huggingface.layers import is_conv1d
from surgery.language.diagnostics import error
from surgery.planning.probe import product_of

LayerKind = Literal["linear", "transposed", "convolution", "embedding"]


@dataclass(frozen=True)
class Layer:
    """A linear-like layer. ``groups`` > 1 for grouped convolutions, whose groups share no inputs.

    ``native`` says that the class computes what its kind does, so that its forward may be
    written out. Otherwise its own forward is called: one that was tried and gives the same, or one
    that is to ``read`` the changed weight, or (a quantised linear's) one that has none to change.
    """

    kind: LayerKind
    out: int
    into: int
    bias: bool
    spatial: int = 0
    groups: int = 1
    native: bool = True
    read: bool = False
    """Whether what is read as the weight is changed: by the parent that never calls the layer
    (`nn.MultiheadAttention`), or by a forward of the layer's own that does more than multiply."""
    plain: bool = True
    """Whether the weight and the bias are parameters that the layer uses as they are."""
    weight: str = "weight"
    offset: str = "bias"
    """The names of the weight and of the bias in the module that holds them."""
    experts: int = 0
    """How many experts have their weights in one parameter; 0 where there is one weight."""
    among: int | None = None
    """Where the result stands in what the module returns, if not alone."""
    held: tuple[int, ...] = ()
    """The shape of a weight that is no module's, of as many dims as its module multiplies with."""
    states: int | None = None
    """How many dims the states have that a weight which is read is multiplied with, if known."""
    turned: bool = False
    """Whether they are [length, batch, features], whichever way round its module is given them."""
    straight: bool = True
    """Whether nothing else is done with a weight that is read than to multiply with it."""
    adds: bool = True
    """Whether what reads the weight reads the bias, too."""

    @property
    def names(self) -> dict[str, str]:
        """The parameters that a rule calls `W` and `b`."""
        return {"W": self.weight, "b": self.offset}

    @property
    def is_closed(self) -> bool:
        """Whether nothing is known of what a forward of its own does with its weight."""
        return not (self.native or self.plain or self.read)

    @property
    def is_own(self) -> bool:
        """Whether a forward of the layer's own reads the weight, and no other module."""
        elsewhere = self.native or self.held or self.experts or self.states is not None
        return self.read and not elsewhere


def named_rank(named: int | None, layer: Layer | None) -> int | None:
    """How many dims a call gives an input of which a rule names ``named`` beside its features.

    Ids have none of these. None if the rule names no dims.
    """
    if named is None:
        return None
    return named + (layer is None or layer.kind != "embedding")


@dataclass(frozen=True)
class _Kind:
    """A class whose ``methods`` make a layer of this kind, if a subclass has them as they are."""

    cls: type[nn.Module]
    kind: LayerKind
    spatial: int = 0
    methods: tuple[str, ...] = ("forward",)


_CONVOLVING = ("forward", "_conv_forward")
_KINDS = {
    nn.Linear: _Kind(nn.Linear, "linear"),
    nn.Embedding: _Kind(nn.Embedding, "embedding"),
    nn.Conv1d: _Kind(nn.Conv1d, "convolution", 1, _CONVOLVING),
    nn.Conv2d: _Kind(nn.Conv2d, "convolution", 2, _CONVOLVING),
    nn.Conv3d: _Kind(nn.Conv3d, "convolution", 3, _CONVOLVING),
}


@lru_cache(maxsize=4096)
def _kind_of(cls: type[nn.Module]) -> _Kind | None:
    for base in cls.__mro__:
        if base in _KINDS:
            return _KINDS[base]
        if is_conv1d(base):
            return _Kind(base, "transposed")
    return None


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
    if found.kind in ("linear", "transposed"):
        product = product_of(module, found.kind == "transposed")
        if product is not None and product.alone:
            return replace(found, among=product.index)
    return replace(found, read=True)


def is_known(module: nn.Module) -> bool:
    """Whether the class of ``module`` makes it a layer, so that nothing need be tried."""
    return _kind_of(type(module)) is not None


def native_layer(module: nn.Module, parent: nn.Module | None = None) -> Layer | None:
    """How a module of a known class reads as a linear layer, without trying a forward of its own."""
    cls = type(module)
    kind = _kind_of(cls)
    if kind is None:
        return None
    check_sizes(module)
    unchanged = all(getattr(cls, name) is getattr(kind.cls, name) for name in kind.methods)
    # With `max_norm`, an embedding rescales what it looks up.
    native = unchanged and getattr(module, "max_norm", None) is None
    bias, plain, made = _has_bias(module), _holds(module), cast("Any", module)
    if kind.kind == "linear":
        sizes = made.out_features, made.in_features
        read = isinstance(parent, nn.MultiheadAttention)
        native = native and _is_plain(module, sizes)
        states = 2 if read else None
        return Layer("linear", *sizes, bias, 0, 1, native, read, plain, states=states)
    if kind.kind == "embedding":
        sizes = made.embedding_dim, made.num_embeddings
        return Layer("embedding", *sizes, False, native=native, plain=plain)
    out, *into = made.weight.shape
    if kind.kind == "transposed":
        return Layer("transposed", into[0], out, bias, native=native, plain=plain)
    sizes, groups = (out, prod(into)), int(made.groups)
    return Layer("convolution", *sizes, bias, kind.spatial, groups, native, plain=plain)


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
    if weight is None or not weight.is_floating_point():
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
    made = Layer("linear", out, into, bias, read=True, weight=weight, offset=offset)
    return replace(made, states=3, turned=True)


def experts_layer(module: nn.Module, weight: str, experts: Experts) -> Layer:
    """The weights of ``experts`` that ``module`` holds as one and reads itself.

    Their biases, where they have some, are added apart from the product.
    """
    return Layer(
        "transposed" if experts.transposed else "linear",
        experts.out,
        experts.into,
        False,
        read=True,
        plain=module._parameters[weight] is not None,
        weight=weight,
        experts=experts.count,
    )


def matrix_layer(module: nn.Module, weight: str, matrix: Matrix) -> Layer:
    """The linear map whose weight ``module`` holds, and multiplies with itself."""
    held = module._parameters[weight]
    return Layer(
        "transposed" if matrix.transposed else "linear",
        matrix.out,
        matrix.into,
        matrix.bias is not None,
        read=True,
        plain=held is not None,
        weight=weight,
        offset=matrix.bias or "bias",
        held=() if held is None else tuple(held.shape),
        states=matrix.states,
    )


def _alike(module: nn.Module) -> Layer | None:
    """A module of another class that computes what `nn.Linear` does with its own weight."""
    product = product_of(module) if _holds(module) else None
    if product is None:
        return None
    out, into = module._parameters["weight"].shape  # type: ignore[union-attr]
    layer = Layer("linear", out, into, _has_bias(module), native=False)
    return replace(layer, among=product.index) if product.alone else replace(layer, read=True)


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), torch.Tensor)


def _is_plain(module: nn.Module, shape: tuple[int, int]) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.shape == shape
