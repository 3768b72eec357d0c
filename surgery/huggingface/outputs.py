"""What transformers' models return: a mapping with names, or a plain tuple in the same order.

Hidden states, attentions and router scores come as tuples with a tensor for each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

Several = tuple[Any, ...]


def each(output: Any, change: Callable[[Any, Any], Any]) -> Any:
    """``output`` with its values as ``change`` makes them of key and value.

    A mapping is changed in place; keys of a tuple are places. Anything else stays as it is.
    """
    if isinstance(output, dict):
        items = cast("dict[Any, Any]", output)
        for key, value in list(items.items()):
            items[key] = change(key, value)
        return items
    if type(output) is not tuple:
        return output
    return tuple(change(i, value) for i, value in enumerate(cast("Several", output)))


def each_of_layers(
    output: Any,
    attends: Callable[[Any], bool],
    change: Callable[[Several, bool, bool], Several],
) -> Any:
    """``output`` with its tuples of one value a layer changed.

    ``change`` is told of a tuple whether it holds attentions, and whether those are to another
    sequence (cross attention). Without names ``attends`` tells attentions by what they look like;
    those to the sequence itself come first.
    """
    many = 0

    def changed(key: Any, value: Any) -> Any:
        nonlocal many
        if isinstance(key, str):
            if not isinstance(value, tuple | list):
                return value
            return change(cast("Several", value), "attention" in key, "cross" in key)
        if not isinstance(value, tuple):
            return value
        several = cast("Several", value)
        found = any(map(attends, several))
        # ProphetNet: its predicting streams, [batch, streams, heads, queries, keys], come between.
        streams = any(isinstance(v, Tensor) and v.dim() == 5 for v in several)
        across = many > 0 and not streams
        many += found
        return change(several, found, across)

    return each(output, changed)
