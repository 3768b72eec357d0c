"""What a module reads in place of the weights of its experts, once they are changed.

An experts' module takes the matrices of some experts from one parameter and multiplies with them:
one expert at a time, one for each token, or all in a grouped product. Instead of the parameter it
gets an object that follows selections and views of experts. Whatever else is done with it, is done
with the changed weights themselves.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_OWN = frozenset(("dtype", "device", "is_cuda", "is_meta", "layout", "requires_grad"))
_SIZES = frozenset(("shape", "size", "dim", "ndim", "numel"))


class ExpertWeights:
    """Matrices [experts, rows, columns], or that of one expert, with changes.

    ``weight`` are those without the changes. ``held`` is the shape of the parameter where it is
    another, before its first view.
    """

    weight: Tensor
    held: torch.Size | None

    def changed(self) -> Tensor:
        """The weights with the changes in them."""
        raise NotImplementedError

    def select(self, index: Any) -> Any:
        """The matrices of some experts."""
        raise NotImplementedError

    def turned(self) -> Any:
        """Each matrix transposed."""
        return self.changed().mT

    def unfolded(self) -> ExpertWeights:
        """The same matrices, no longer in the shape ``held``."""
        raise NotImplementedError

    def product(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """A product with these weights, if there is a better way than through the changed ones."""
        return None

    def __getitem__(self, index: Any) -> Any:
        plain = isinstance(index, tuple | list) or index is None or index is Ellipsis
        if plain or self.held is not None or self.weight.dim() != 3:
            return self.changed()[index]
        return self.select(index)

    def transpose(self, first: int, second: int) -> Any:
        """The matrices turned, or another transposition of the changed weights."""
        dims = self.weight.dim()
        if self.held is not None or {first % dims, second % dims} != {dims - 2, dims - 1}:
            return self.changed().transpose(first, second)
        return self.turned()

    @property
    def mT(self) -> Any:  # noqa: N802 (a tensor's)
        return self.transpose(-2, -1)

    @property
    def T(self) -> Any:  # noqa: N802 (a tensor's)
        return self.turned() if self.held is None and self.weight.dim() == 2 else self.changed().T

    def view(self, *shape: Any) -> Any:
        """The matrices, where the parameter held them in another shape; else a changed view."""
        wanted = tuple(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        sizes = zip(wanted, self.weight.shape, strict=False)
        alike = len(wanted) == self.weight.dim() and all(w in (-1, s) for w, s in sizes)
        return self.unfolded() if alike and self.held else self.changed().reshape(wanted)

    reshape = view

    def __matmul__(self, other: Tensor) -> Tensor:
        return torch.matmul(cast(Tensor, self), other)

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return torch.matmul(other, cast(Tensor, self))

    def data_ptr(self) -> int:
        """Where the weights without the changes are, for checks of alignment on a CPU.

        Raises:
            RuntimeError: elsewhere, where who asks is a kernel that would not see the changes.

        """
        if self.weight.device.type == "cpu":
            return self.weight.data_ptr()
        raise RuntimeError(
            "a kernel reads the weights of adapted experts by their address, where the adaptation "
            "is not; choose another with `set_experts_implementation('grouped_mm')`"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _OWN or (name in _SIZES and self.held is None):
            return getattr(self.weight, name)
        return getattr(self.changed(), name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [a for a in args if isinstance(a, ExpertWeights)]
        if len(given) == 1 and given[0].held is None:
            name = str(getattr(func, "__name__", func))
            found = given[0].product(name, func, args, kwargs)
            if found is not None:
                return found
        return func(*_materialised(args), **_materialised(kwargs))


def _materialised(thing: Any) -> Any:
    if isinstance(thing, ExpertWeights):
        return thing.changed()
    if isinstance(thing, tuple | list):
        items = cast("tuple[Any, ...]", thing)
        return type(items)(map(_materialised, items))
    if isinstance(thing, dict):
        return {k: _materialised(v) for k, v in cast("dict[str, Any]", thing).items()}
    return thing
