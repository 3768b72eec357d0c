"""What a module reads in place of a weight that it multiplies with itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from surgery.anatomy.roles.layouts import letters
from surgery.graft.attention.whole import opened
from surgery.language.diagnostics import error

_KNOWN = frozenset(("dtype", "device", "is_cuda", "is_meta", "is_nested", "requires_grad", "shape"))
_PRODUCTS = frozenset(("matmul", "mm", "__matmul__"))


class ReadWeight:
    """A weight whose products are changed by ``run``, given their input and result, features last.

    ``weight`` is the parameter, or the rows of it from ``start`` on; the whole has ``total``.

    Raises:
        SurgeryError: S430 if anything else is done with it, as it would see none of the change.

    """

    def __init__(
        self,
        run: Callable[[Tensor, Tensor], Tensor],
        weight: Tensor,
        total: int,
        start: int = 0,
    ):
        self.run = run
        self.weight = weight
        self.total = total
        self.start = start

    def split(self, sizes: Sequence[int]) -> tuple[ReadWeight, ...]:
        """Some rows after the other, as those of queries, keys and values."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(
            ReadWeight(self.run, self.weight.narrow(0, at, size), self.total, self.start + at)
            for at, size in zip(starts, sizes, strict=True)
        )

    def chunk(self, count: int) -> tuple[ReadWeight, ...]:
        """The same, in ``count`` equal parts."""
        size = -(-len(self.weight) // count)
        return self.split(
            [min(size, len(self.weight) - at) for at in range(0, len(self.weight), size)]
        )

    def changed(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` [..., features] as methods have it, of the whole layer or of its rows alone.

        It stays contiguous, as products are: their views are taken.
        """
        if y.shape[-1] == self.total:
            return self.run(x, y).to(y.dtype).contiguous()
        end = self.start + y.shape[-1]
        whole = y.new_zeros(*y.shape[:-1], self.total)
        whole = torch.slice_scatter(whole, y, -1, self.start, end)
        return self.run(x, whole)[..., self.start : end].to(y.dtype).contiguous()

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return self.changed(other, other @ self.weight)

    def __getitem__(self, index: Any) -> NoReturn:
        self.lost()

    def __getattr__(self, name: str) -> Any:
        if name in _KNOWN:
            return getattr(self.weight, name)
        if name.startswith("__"):
            raise AttributeError(name)
        self.lost()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", func))
        if name == "multi_head_attention_forward":
            return opened(*args, **kwargs)
        if name == "einsum":
            return _einsum(*args)
        if name == "linear":
            return _linear(func, *args, **kwargs)
        if name in _PRODUCTS and len(args) == 2 and isinstance(args[1], ReadWeight):
            return args[1].changed(args[0], func(args[0], args[1].weight))
        found = next(a for a in (*args, *kwargs.values()) if isinstance(a, ReadWeight))
        found.lost()

    def lost(self) -> NoReturn:
        raise error(
            "S430",
            f"an adapted weight {[*self.weight.shape]} is used otherwise than when the model was read",
            help="a method that merges can be applied to it: its effective weight is read",
        )


def _linear(func: Any, input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, ReadWeight):
        raise TypeError("only the weight of a product is changed")
    return weight.changed(input, func(input, weight.weight, bias))


def _einsum(equation: str, *operands: Any) -> Tensor:
    """The changed product of an einsum of two operands, with features last while it is changed."""
    at = next(i for i, operand in enumerate(operands) if isinstance(operand, ReadWeight))
    weight: ReadWeight = operands[at]
    x: Tensor = operands[1 - at]
    pair = (weight.weight, x) if at == 0 else (x, weight.weight)
    terms = letters(equation, (pair[0].dim(), pair[1].dim()))
    if terms is None:
        weight.lost()
    own, given, result = terms[at], terms[1 - at], terms[2]
    y: Tensor = torch.einsum(equation, *pair)
    leading = [c for c in given if c not in own]
    into = [given.index(c) for c in (*leading, *(c for c in own if c in given))]
    order = [result.index(c) for c in (*leading, *(c for c in own if c not in given))]
    states, made = x.permute(into), y.permute(order)
    first = len(leading)
    changed = weight.changed(states.flatten(first), made.flatten(first)).reshape(made.shape)
    changed = changed.permute([order.index(i) for i in range(len(order))])
    return changed.contiguous() if y.is_contiguous() else changed


def read_weight(module: nn.Module, name: str, weight: Tensor, total: int) -> ReadWeight:
    """What stands for ``weight`` of ``module``, whose function ``name`` changes its products."""
    cls: Any = type(module)
    function = cls.surgery_functions[name]
    return ReadWeight(lambda x, y: function(module, x, y), weight, total)
