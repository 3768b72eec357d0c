"""What is done to the products of a weight, whichever way they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from surgery.planning.layers import LayerKind

Form = tuple[LayerKind, int, str | None, str | None]
"""The kind of a layer and its outputs, with the names of a bias that is added apart from the
product, and of the function that gives the whole changed weight."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product as it runs: ``again`` on another input, and ``like`` it with another kernel."""

    again: Callable[[Tensor], Tensor]
    like: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None


def again(product: Product, x: Tensor) -> Tensor:
    """What the base makes of ``x`` where it runs ``product``."""
    return product.again(x)


def convolved(product: Product, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of ``x`` with another kernel than that of the ``product`` that runs."""
    assert product.like is not None
    return product.like(x, kernel, bias)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done to the products of a weight.

    ``run`` gives a changed product from its input, from what it is and from itself, features last
    but for those of convolutions; ``whole`` the changed weight, if there is one. A product without
    the ``offset`` that the layer has gets it while it is changed.
    """

    run: Callable[[Tensor, Tensor, Product], Tensor]
    kind: LayerKind
    total: int
    offset: Tensor | None = None
    whole: Callable[[], Tensor] | None = None
