"""What passes between modules beside their arguments: hidden states, masks, whole modules."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from surgery.language.diagnostics import error


class Tap:
    """Carries one value from the module where it is seen to the one where it is used."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        copy = memo.setdefault(id(self), type(self)())
        return copy

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        return type(self), ()

    def put(self, value: Any) -> None:
        self.value = value


def write_tap(tap: Tap, value: Any) -> None:
    tap.put(value)


def read_tap(tap: Tap) -> Any:
    """What a tap carries, once.

    Raises:
        SurgeryError: S434 if its module did not run before the one that reads.

    """
    value = tap.value
    if value is None:
        raise error(
            "S434",
            "a method here reads hidden states of another module, and this one was run by itself, "
            "as in the backward of reversible layers",
            help="apply a method that reads no residual there",
        )
    tap.value = None
    return value


def peek_tap(tap: Tap) -> Any:
    """What a tap carries, for several readers."""
    return tap.value


class Held:
    """Holds a module without owning it, so that no parameter gets a second name."""

    __slots__ = ("module",)

    def __init__(self, module: nn.Module):
        self.module = module


def call_held(held: Held, value: Tensor) -> Tensor:
    """What a held module makes of hidden states, without what it gives beside them."""
    result = held.module(value)
    return cast("tuple[Tensor, ...]", result)[0] if isinstance(result, tuple) else result
