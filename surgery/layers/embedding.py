"""`nn.Embedding`: a linear map over one-hot ids, whose table [ids, features] is looked up in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.layers.kind import Call, Layer, LayerKind, Reads, holding
from surgery.layers.products import Product, WeightInProducts


def look_up(module: Any, ids: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    """Rows of ``table`` [ids, features]: what one-hot ids select of a matrix."""
    rows = functional.embedding(ids, table)
    return rows if bias is None else rows + bias


def _looked_up(func: Any, input: Tensor, weight: Any, *rest: Any, **more: Any) -> Tensor | None:
    limited = more.get("max_norm", rest[1] if len(rest) > 1 else None)
    if not isinstance(weight, WeightInProducts) or limited is not None:
        return None

    def again(ids: Tensor) -> Tensor:
        return func(ids, weight.weight, *rest, **more)

    def like(ids: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        return look_up(None, ids, table, bias)

    y = again(input)
    return weight.change.run(input, y, Product(again, like)).to(y.dtype)


def _made(given: Any, weight: nn.Parameter, bias: None) -> nn.Module:
    padding = given(2)
    known = padding if isinstance(padding, int) and padding >= 0 else None
    return holding(nn.Embedding(*weight.shape, padding_idx=known, device="meta"), weight, None)


class Embedding(LayerKind):
    """A column of W for each id."""

    name = "embedding"
    classes = (nn.Embedding,)
    one_hot = True
    products = {"embedding": _looked_up}  # noqa: RUF012 (a constant of the class)
    run = staticmethod(look_up)
    exported = {torch.ops.aten.embedding.default: Reads(1, 0, None, _made)}  # noqa: RUF012

    def read(self, module: Any) -> Layer:
        # With `max_norm`, it rescales what it looks up.
        native = getattr(module, "max_norm", None) is None
        return Layer(self, module.embedding_dim, module.num_embeddings, native=native)

    def as_matrix(self, call: Call, layer: Layer, weight: Any) -> Any:
        return call(torch.t, weight)

    def as_weight(self, call: Call, layer: Layer, matrix: Any) -> Any:
        return call(torch.t, matrix)

    def examples(self, module: Any, layer: Layer, weight: Tensor) -> Iterator[tuple[Tensor]]:
        yield (torch.zeros(2, 3, dtype=torch.long, device=weight.device),)

    def flops(self, layer: Layer) -> int:
        return 0
