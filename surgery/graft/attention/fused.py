"""Changes of `scaled_dot_product_attention`."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from surgery.graft.attention.axes import changed
from surgery.graft.attention.change import Change
from surgery.graft.attention.masks import reveal

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def attend(func: Any, args: tuple[Any, ...], kwargs: Any, change: Change, heads: int) -> Tensor:
    """``func``, which is `scaled_dot_product_attention`, with ``change``.

    ``heads`` are those of queries, for operands that hold batch and heads in one axis.
    """
    given: dict[str, Any] = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    for name, function in zip(_NAMES, (change.query, change.key, change.value), strict=False):
        if function is not None:
            given[name] = changed(given[name], function, heads)
    if change.revealed:
        causal = bool(given.pop("is_causal", False))
        mask = cast("Tensor | None", given.get("attn_mask"))
        given["attn_mask"] = reveal(mask, causal, change.revealed, given["query"], given["key"])
    result = func(**given)
    return result if change.output is None else changed(result, change.output, heads)
