"""What graphs that change a weight's products do with a product as it runs."""

from __future__ import annotations

from torch import Tensor

from surgery.layers.products import Product


def again(product: Product, x: Tensor) -> Tensor:
    """What the base makes of ``x`` where it runs ``product``."""
    return product.again(x)


def with_weight(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same operator of ``x`` with another weight and bias than those of the ``product``."""
    assert product.like is not None
    return product.like(x, weight, bias)
