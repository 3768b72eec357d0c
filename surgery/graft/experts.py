"""What a module reads in place of the weights of its experts: their products, changed.

An experts' module takes the matrices of some experts from one parameter and multiplies with them:
one expert at a time, one for each token, or all in a grouped product. Instead of the parameter it
gets an object that goes along with views and selections of experts. In a product with W + s·L R it
computes x W + s·(x L) R, so that no changed weight is ever made; whatever else is done with it, is
done with the changed weight itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Factors = tuple[Tensor, Tensor, float]
"""L […, rows, r], R [r, columns] and s of a change s·L R."""


class LowRankWeights:
    """Matrices [experts, rows, columns] with low-rank changes, or that of one expert.

    ``held`` is the shape of the parameter where it is another, before its first view.
    """

    def __init__(
        self, weight: Tensor, factors: Sequence[Factors], held: torch.Size | None = None
    ) -> None:
        self.weight = weight
        self.factors = tuple(factors)
        self.held = held

    def changed(self) -> Tensor:
        """The weights with the changes in them."""
        total = self.weight
        for left, right, scale in self.factors:
            total = torch.add(total, left @ right, alpha=scale)
        return total if self.held is None else total.reshape(self.held)

    def each(
        self,
        weight: Callable[[Tensor], Tensor],
        factors: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> LowRankWeights:
        """The same view taken of the weight and of its factors."""
        kept = [(*factors(left, right), scale) for left, right, scale in self.factors]
        return LowRankWeights(weight(self.weight), kept)

    def __getitem__(self, index: Any) -> Any:
        if self.held is not None or self.weight.dim() != 3 or isinstance(index, tuple | list):
            return self.changed()[index]
        if index is None or index is Ellipsis:
            return self.changed()[index]
        return self.each(lambda w: w[index], lambda left, right: (left[index], right[index]))

    def transpose(self, first: int, second: int) -> Any:
        """The matrices turned, or any other transposition of the changed weights."""
        dims = self.weight.dim()
        if self.held is not None or {first % dims, second % dims} != {dims - 2, dims - 1}:
            return self.changed().transpose(first, second)
        return self.each(lambda w: w.mT, lambda left, right: (right.mT, left.mT))

    @property
    def mT(self) -> Any:  # noqa: N802 (a tensor's)
        return self.transpose(-2, -1)

    @property
    def T(self) -> Any:  # noqa: N802 (a tensor's)
        return self.transpose(-2, -1) if self.weight.dim() == 2 else self.changed().T

    def view(self, *shape: Any) -> Any:
        """All matrices, where the parameter held them in another shape; else a changed view."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if self.held is not None and _is_shape(tuple(wanted), self.weight.shape):
            return LowRankWeights(self.weight, self.factors)
        return self.changed().reshape(tuple(wanted))

    reshape = view

    def to(self, *args: Any, **kwargs: Any) -> Any:
        moved = self.each(
            lambda w: w.to(*args, **kwargs),
            lambda left, right: (left.to(*args, **kwargs), right.to(*args, **kwargs)),
        )
        moved.held = self.held
        return moved

    def __matmul__(self, other: Tensor) -> Tensor:
        return _left(torch.matmul, self, other)

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return _right(torch.matmul, other, self)

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "device", "is_cuda", "is_meta", "layout", "requires_grad"):
            return getattr(self.weight, name)
        if name in ("shape", "size", "dim", "ndim", "numel") and self.held is None:
            return getattr(self.weight, name)
        return getattr(self.changed(), name)

    def data_ptr(self) -> int:
        return _address(self.weight)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = _product(getattr(func, "__name__", str(func)), func, args, kwargs)
        if found is not None:
            return found
        changed = cast("tuple[Any, ...]", _materialised(args))
        return func(*changed, **_materialised(kwargs))


def _product(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A product with changed weights, or None if this is none."""
    if len(args) < 2 or any(isinstance(v, LowRankWeights) for v in kwargs.values()):
        return None
    first, second, *rest = args
    if isinstance(second, LowRankWeights) and second.held is None and isinstance(first, Tensor):
        if name == "linear" and second.weight.dim() == 2:
            return _linear(func, first, second, *rest, **kwargs)
        if name in ("matmul", "__matmul__", "mm", "bmm") and not (rest or kwargs):
            return _right(func, first, second)
        if name in ("grouped_mm", "_grouped_mm", "grouped_mm_fallback"):
            return _grouped(func, first, second, *rest, **kwargs)
    if not isinstance(first, LowRankWeights) or first.held is not None or rest or kwargs:
        return None
    if name not in ("matmul", "mm", "bmm") or not isinstance(second, Tensor):
        return None
    return _left(func, first, second)


def _linear(func: Any, x: Tensor, weights: LowRankWeights, *rest: Any, **kwargs: Any) -> Tensor:
    result: Tensor = func(x, weights.weight, *rest, **kwargs)
    for left, right, scale in weights.factors:
        hidden = functional.linear(x, right)
        result = torch.add(result, functional.linear(hidden, left), alpha=scale)
    return result


def _right(func: Any, x: Tensor, weights: LowRankWeights) -> Tensor:
    result: Tensor = func(x, weights.weight)
    for left, right, scale in weights.factors:
        result = torch.add(result, func(func(x, left), right), alpha=scale)
    return result


def _left(func: Any, weights: LowRankWeights, x: Tensor) -> Tensor:
    result: Tensor = func(weights.weight, x)
    for left, right, scale in weights.factors:
        result = torch.add(result, func(left, func(right, x)), alpha=scale)
    return result


def _grouped(func: Any, x: Tensor, weights: LowRankWeights, *rest: Any, **kwargs: Any) -> Tensor:
    result: Tensor = func(x, weights.weight, *rest, **kwargs)
    for left, right, scale in weights.factors:
        left, right = _aligned(left, right)
        hidden = func(x, left, *rest, **kwargs)
        result = torch.add(result, func(hidden, right, *rest, **kwargs), alpha=scale)
    return result


def _aligned(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors with a rank that fills 16 bytes, as grouped kernels want rows to."""
    multiple = max(1, 16 // left.element_size())
    missing = -left.shape[-1] % multiple
    if missing:
        left = functional.pad(left, (0, missing))
        right = functional.pad(right, (0, 0, 0, missing))
    return left.contiguous(), right.contiguous()


def _address(weight: Tensor) -> int:
    """Where the weights without the changes are, for the checks of alignment on a CPU.

    Raises:
        RuntimeError: elsewhere, where who asks is a kernel that would not see the changes.

    """
    if weight.device.type == "cpu":
        return weight.data_ptr()
    raise RuntimeError(
        "a kernel reads the weights of adapted experts by their address, where the adaptation is not; "
        "choose another with `set_experts_implementation('grouped_mm')`"
    )


def _is_shape(wanted: tuple[int, ...], shape: torch.Size) -> bool:
    """Whether ``wanted``, in which one size may be -1, is ``shape``."""
    return len(wanted) == len(shape) and all(
        w in (-1, s) for w, s in zip(wanted, shape, strict=True)
    )


def _materialised(thing: Any) -> Any:
    if isinstance(thing, ChangedWeights | LowRankWeights):
        return thing.changed()
    if isinstance(thing, tuple | list):
        items = cast("tuple[Any, ...]", thing)
        return type(items)(map(_materialised, items))
    if isinstance(thing, dict):
        return {k: _materialised(v) for k, v in cast("dict[str, Any]", thing).items()}
    return thing


class ChangedWeights:
    """Matrices [experts, rows, columns] of which the changed ones are made when they are read.

    ``change`` gives the changed matrix of one expert from its weight and its parameters. Where
    experts are selected first, only theirs are made.
    """

    def __init__(
        self,
        change: Callable[..., Tensor],
        values: tuple[Tensor, ...],
        held: torch.Size | None = None,
    ) -> None:
        self.change = change
        self.values = values
        self.held = held

    def changed(self) -> Tensor:
        """The changed matrices of all experts."""
        total = torch.vmap(self.change)(*self.values)
        return total if self.held is None else total.reshape(self.held)

    def __getitem__(self, index: Any) -> Tensor:
        if self.held is not None or index is None or isinstance(index, tuple | list):
            return self.changed()[index]
        chosen = tuple(value[index] for value in self.values)
        return self.change(*chosen) if chosen[0].dim() == 2 else torch.vmap(self.change)(*chosen)

    def view(self, *shape: Any) -> Any:
        """All matrices, where the parameter held them in another shape; else a changed view."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if self.held is not None and _is_shape(tuple(wanted), self.values[0].shape):
            return ChangedWeights(self.change, self.values)
        return self.changed().reshape(tuple(wanted))

    reshape = view

    def data_ptr(self) -> int:
        return _address(self.values[0])

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.changed() @ other

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return other @ self.changed()

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "device", "is_cuda", "is_meta", "layout", "requires_grad"):
            return getattr(self.values[0], name)
        return getattr(self.changed(), name)

    def data_ptr(self) -> int:
        """No address: who reads the weights by it would not see what was changed.

        Raises:
            RuntimeError: always.

        """
        raise _by_address()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        changed = cast("tuple[Any, ...]", _materialised(args))
        return func(*changed, **_materialised(kwargs or {}))


def low_rank_weights(
    weight: Tensor, experts: int, transposed: bool, terms: tuple[Factors, ...]
) -> LowRankWeights:
    """The weights of a module's experts with s·B A added to each, for ``terms`` (B, A, s)."""
    stacked, held = _stacked(weight, experts)
    if transposed:
        terms = tuple((right.mT, left.mT, scale) for left, right, scale in terms)
    return LowRankWeights(stacked, terms, held)


def changed_weights(
    module: nn.Module, name: str, experts: int, values: tuple[Tensor, ...]
) -> ChangedWeights:
    """The weights of a module's experts as its function ``name`` makes them, when they are read."""
    cls: Any = type(module)
    function = cls.surgery_functions[name]
    stacked, held = _stacked(values[0], experts)
    return ChangedWeights(lambda *v: function(module, *v), (stacked, *values[1:]), held)


def for_each(module: nn.Module, name: str, values: tuple[Tensor, ...]) -> Tensor:
    """The module's function ``name`` of the values of each expert."""
    cls: Any = type(module)
    function = cls.surgery_functions[name]
    return torch.vmap(lambda *v: function(module, *v))(*values)


def _stacked(weight: Tensor, experts: int) -> tuple[Tensor, torch.Size | None]:
    if weight.dim() == 3:
        return weight, None
    return weight.view(experts, -1, weight.shape[-1]), weight.shape
