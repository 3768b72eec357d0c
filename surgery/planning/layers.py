"""Kinds of layer that read as the operator `linear`, and their sizes.

A convolution is a linear map over patches and an embedding one over one-hot ids, so each kind
only says how its weight is a matrix [n, m].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal, cast

import torch
from torch import nn

from surgery.anatomy.site import Experts, Matrix

LayerKind = Literal["linear", "transposed", "convolution", "embedding"]


@dataclass(frozen=True)
class Layer:
    """A linear-like layer. ``groups`` > 1 for grouped convolutions, whose groups share no inputs.

    ``native`` says that the class computes what its kind does, so that its forward may be
    written out; otherwise (a quantised linear, say) its own forward is called.
    """

    kind: LayerKind
    out: int
    into: int
    bias: bool
    spatial: int = 0
    groups: int = 1
    native: bool = True
    read: bool = False
    """Whether the parent reads the weight and never calls the layer (`nn.MultiheadAttention`)."""
    plain: bool = True
    """Whether the weight is a parameter that the layer uses as it is."""
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


def named_rank(named: int | None, layer: Layer | None) -> int | None:
    """How many dims a call gives an input of which a rule names ``named`` beside its features.

    Ids have none of these. None if the rule names no dims.
    """
    if named is None:
        return None
    return named + (layer is None or layer.kind != "embedding")


_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def read_layer(module: nn.Module, parent: nn.Module | None = None) -> Layer | None:
    """How ``module`` reads as a linear layer, or None if it does not."""
    layer = _read(module, parent)
    if layer is None:
        return None
    own = module._parameters.get("weight") is not None
    # With `max_norm`, an embedding rescales what it looks up.
    usual = layer.native or (layer.kind == "linear" and own and _product(module) is not None)
    plain = own and usual and getattr(module, "max_norm", None) is None
    return replace(layer, plain=plain)


@dataclass(frozen=True)
class _Product:
    """What `nn.Linear` would give, among what a module returns: at ``index``, or as all of it."""

    index: int | None


@torch.no_grad()
def _product(module: nn.Module) -> _Product | None:
    """Where a forward of its own gives what `nn.Linear` does with the weight: tried on one input.

    Some write the product in another way; others dequantise, add something or round. What stands
    beside the product may be no tensor: it would be computed without what is done to the product.
    """
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        return None
    x = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype)
    x = x.sin().view(2, -1)
    expected = nn.functional.linear(x, weight, bias)
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        try:
            found = type(module).forward(module, x)
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return None
    given = cast("tuple[object, ...]", found) if isinstance(found, tuple) else (found,)
    tensors = [i for i, value in enumerate(given) if isinstance(value, torch.Tensor)]
    result = given[tensors[0]] if len(tensors) == 1 else None
    if not isinstance(result, torch.Tensor) or result.shape != expected.shape:
        return None
    if not torch.allclose(result, expected, rtol=1e-3, atol=1e-3):
        return None
    return _Product(tensors[0] if isinstance(found, tuple) else None)


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


def _read(module: nn.Module, parent: nn.Module | None) -> Layer | None:
    cls = type(module)
    if isinstance(module, nn.Linear):
        read = isinstance(parent, nn.MultiheadAttention)
        return Layer(
            "linear",
            module.out_features,
            module.in_features,
            _has_bias(module),
            native=cls.forward is nn.Linear.forward
            and _is_plain(module, (module.out_features, module.in_features)),
            read=read,
            states=2 if read else None,
        )
    if isinstance(module, nn.Embedding):
        native = cls.forward is nn.Embedding.forward
        return Layer("embedding", module.embedding_dim, module.num_embeddings, False, native=native)
    for convolution, spatial in _CONVOLUTIONS.items():
        if isinstance(module, convolution):
            weight = cast("torch.Tensor", module.weight)
            return Layer(
                "convolution",
                weight.shape[0],
                prod(weight.shape[1:]),
                _has_bias(module),
                spatial,
                int(getattr(module, "groups", 1)),
                native=cls.forward is convolution.forward,
            )
    if any(
        c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in cls.__mro__
    ):
        weight = cast("torch.Tensor", module.weight)
        native = cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        return Layer(
            "transposed", weight.shape[1], weight.shape[0], _has_bias(module), native=native
        )
    return _alike(module)


def _alike(module: nn.Module) -> Layer | None:
    """A module of another class that computes what `nn.Linear` does with its own weight."""
    product = _product(module)
    if product is None:
        return None
    out, into = module._parameters["weight"].shape  # type: ignore[union-attr]
    return Layer("linear", out, into, _has_bias(module), native=False, among=product.index)


def _has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


def _is_plain(module: nn.Module, shape: tuple[int, int]) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.shape == shape
