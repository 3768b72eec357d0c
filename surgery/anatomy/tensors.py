"""Tensors as a recorder sees them: those in an argument, their memory, versions and owners."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor

from surgery.anatomy.paths import Paths

DESCRIPTIONS = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "__len__",
        "__hash__",
        "stride",
        "storage_offset",
        "is_contiguous",
        "element_size",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "is_conj",
        "is_neg",
        "is_inference",
        "is_same_size",
        "is_set_to",
        "is_pinned",
        "is_shared",
        "is_tensor",
        "get_device",
        "dim_order",
        "has_names",
        "type",
        "result_type",
        "can_cast",
        "promote_types",
        "is_distributed",
    ]
)
"""Functions that give no tensor and say nothing of the numbers in those they are given."""


def number_in(tensor: torch.Tensor) -> int | None:
    """The one whole number that ``tensor`` is, if it can be read at once."""
    whole = tensor.dim() == 0 and not tensor.dtype.is_floating_point and not tensor.is_complex()
    if not whole or isinstance(tensor, FakeTensor) or tensor.device.type != "cpu":
        return None
    try:
        return int(tensor)
    except RuntimeError:  # inside `vmap`
        return None


def is_index(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` holds integers that can be read at once: what is looked up by them is one."""
    whole = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return plain and whole and tensor.dtype is not torch.bool and tensor.device.type == "cpu"


def owners_of(paths: Paths) -> dict[int, tuple[str, str]]:
    """The kind and the first name of each tensor that the model registers, by its identity."""
    found: dict[int, tuple[str, str]] = {}
    for path, module in paths.modules.items():
        for name, buffer in module._buffers.items():  # pyright: ignore[reportPrivateUsage]
            if buffer is not None:
                found.setdefault(id(buffer), ("buffer", f"{path}.{name}" if path else name))
    for path, parameter in paths.parameters.items():
        found.setdefault(id(parameter), ("parameter", path))
    return found


def tensors_in(thing: Any) -> list[torch.Tensor]:
    """The tensors in an argument or a result, however nested."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    items: Iterable[Any] = ()
    if isinstance(thing, (tuple, list)):
        items = cast("Iterable[Any]", thing)
    elif isinstance(thing, dict):
        items = cast("dict[Any, Any]", thing).values()
    found: list[torch.Tensor] = []
    for item in items:
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            found += tensors_in(item)
    return found


def storage_of(tensor: torch.Tensor) -> int:
    """What tells the memory of ``tensor`` from others; -1 where it cannot be told."""
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    except RuntimeError:  # inside `vmap`, or of a kind without one
        return -1


def tensors_inside(thing: Any) -> list[torch.Tensor]:
    """The same in any object, as far as its attributes show them."""
    found: list[torch.Tensor] = []
    waiting: list[Any] = [thing]
    known: set[int] = set()
    for one in waiting:
        if id(one) in known or isinstance(one, str | bytes | int | float | type(None)):
            continue
        known.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, dict):
            waiting += cast("dict[Any, Any]", one).values()
        elif isinstance(one, tuple | list | set | frozenset):
            waiting += cast("tuple[Any, ...]", one)
        else:
            waiting += getattr(one, "__dict__", {}).values()
    return found


def version_of(tensor: torch.Tensor) -> int:
    return tensor._version  # pyright: ignore[reportPrivateUsage]


def among(tensor: torch.Tensor, tensors: Any) -> bool:
    return any(other is tensor for other in tensors)


def property_name(func: Any) -> str:
    return str(getattr(getattr(func, "__self__", None), "__name__", "property"))
