"""What generated forwards do with the arguments, the tensors and the output of their module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def take(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """The argument ``name`` of a call, by keyword or by position; None if it is not given."""
    if name in kwargs:
        return kwargs[name]
    return args[position] if position < len(args) else None


def put_args(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> Any:
    """Positional arguments with ``name`` replaced, if it was given by position."""
    return args if name in kwargs else (*args[:position], value, *args[position + 1 :])


def put_kwargs(kwargs: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Keyword arguments with ``name`` replaced, if it was given by keyword."""
    return {**kwargs, name: value} if name in kwargs else kwargs


def call_base(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the forward that ``module`` had before it was adapted."""
    cls: Any = type(module)
    return cls.surgery_base.forward(module, *args, **kwargs)


def own_parameter(module: nn.Module, name: str) -> Tensor | None:
    """A parameter itself, where a property of the same name stands before it."""
    return module._parameters[name]


def first(output: Any, key: int | str) -> Any:
    """The hidden states in a tuple, mapping or dataclass output."""
    return output[key]


def with_first(output: Any, key: int | str, value: Any) -> Any:
    """``output`` with its hidden states replaced; its type stays."""
    if isinstance(key, int) and hasattr(output, "keys"):
        key = str([*output.keys()][key])
    if isinstance(key, str):
        changed = type(output)(**{**dict(output), key: value})
        return changed
    items: list[Any] = [*output[:key], value, *output[key + 1 :]]
    cls: Any = output.__class__
    if hasattr(cls, "_fields"):
        return cls(*items)
    return items if cls is list else tuple(items)
