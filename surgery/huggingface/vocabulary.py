"""Token ids: those that mean something of their own to a model, and those of a text."""

from __future__ import annotations

from typing import Any, cast

from torch import nn


def special_tokens(module: nn.Module) -> set[Any]:
    """The ids that the configuration of ``module`` names: padding, the ends of a text, images."""
    found: set[Any] = set()
    settings: dict[str, Any] = getattr(getattr(module, "config", None), "__dict__", {})
    for name, value in settings.items():
        if name.endswith("_token_id"):
            found.update(cast("list[Any]", value) if isinstance(value, list) else [value])
    return found


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of ``text`` alone, as a tokenizer of transformers gives them."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
