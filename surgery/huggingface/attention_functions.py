"""Functions that compute a whole attention out of sight, as transformers' models choose them.

A model of transformers asks `ALL_ATTENTION_FUNCTIONS` in each call of an attention for a function of
its module, queries, keys, values [batch, heads, length, features] and a mask; it gives the heads
beside each other, [batch, length, heads, features]. What those for flex and flash attention do is
compiled, or a kernel, so that no torch function is seen: here they are one themselves.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, overrides

REGISTRY = "ALL_ATTENTION_FUNCTIONS"
FLEX = "transformers.integrations.flex_attention"
FLASH = "transformers.integrations.flash_attention"


def home(function: Any) -> str:
    """The module in which ``function``, or what a partial one calls, is written."""
    while isinstance(function, partial):
        function = function.func  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return str(getattr(function, "__module__", ""))  # pyright: ignore[reportUnknownArgumentType]


def attention_interface(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    function: Callable[..., Any],
    module: Any,
    settings: dict[str, Any],
) -> Any:
    """``function`` of an attention, of which modes are told as they are of torch functions."""
    # Not by `handle_torch_function`, which the compiler does not follow.
    modes: Any = overrides
    if torch._C._is_torch_function_mode_enabled():  # pyright: ignore[reportPrivateUsage]
        with modes._pop_mode_temporarily() as mode:
            given = (query, key, value, mask, function, module, settings)
            return mode.__torch_function__(attention_interface, (), given, {})
    return function(module, query, key, value, mask, **settings)


def _through(
    function: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **settings: Any,
) -> Any:
    return attention_interface(query, key, value, attention_mask, function, module, settings)


class Shown:
    """A registry of attention functions, of which those out of sight are shown to modes."""

    def __init__(self, registry: Any):
        self.registry = registry

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = self.registry.get_interface(name, default)
        return partial(_through, function) if home(function) in (FLEX, FLASH) else function


def opened(forward: Any) -> Any:
    """``forward``, with the attention functions it asks for shown to modes; others as they are."""
    scope: dict[str, Any] | None = getattr(forward, "__globals__", None)
    if not isinstance(forward, FunctionType) or scope is None or REGISTRY not in scope:
        return forward
    # Of a scope with a name the compiler reads the module of that name in its place.
    scope = {name: value for name, value in scope.items() if name != "__name__"}
    scope[REGISTRY] = Shown(scope[REGISTRY])
    made = FunctionType(
        forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _empty(_: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> Any:
    """Nothing but the shape of an attention's result."""
    batch, heads, length, _features = query.shape
    return query.new_zeros(batch, length, heads, value.shape[-1]), None


@contextmanager
def outlined() -> Generator[None]:
    """Inside, this thread's attentions that would be out of sight are seen, and not computed."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    if library is None:
        yield
        return
    registry: Any = library.AttentionInterface
    original, thread = registry.get_interface, threading.get_ident()

    def get_interface(self: Any, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = original(self, name, default)
        if home(function) not in (FLEX, FLASH) or threading.get_ident() != thread:
            return function
        return partial(_through, _empty)

    registry.get_interface = get_interface
    try:
        yield
    finally:
        registry.get_interface = original
