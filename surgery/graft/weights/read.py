"""What a module reads in place of a weight that it multiplies with itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.anatomy.roles.layouts import letters
from surgery.graft.attention.whole import opened
from surgery.graft.weights.change import Change, Form, Product
from surgery.language.diagnostics import error
from surgery.planning.layers import LayerKind
from surgery.planning.probe import DESCRIBED


class ReadWeight:
    """A weight whose products are changed.

    ``weight`` is the parameter, or the rows of it from ``start`` on. Where its inputs come
    ``first``, it is multiplied with from the right.

    Raises:
        SurgeryError: S430 if anything else is done with it that would see none of the change.

    """

    def __init__(self, change: Change, weight: Tensor, first: bool, start: int = 0):
        self.change = change
        self.weight = weight
        self.first = first
        self.start = start

    def split(self, sizes: Sequence[int]) -> tuple[ReadWeight, ...]:
        """Some rows after the other, as those of queries, keys and values."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(
            ReadWeight(self.change, self.weight.narrow(0, at, size), self.first, self.start + at)
            for at, size in zip(starts, sizes, strict=True)
        )

    def chunk(self, count: int) -> tuple[ReadWeight, ...]:
        """The same, in ``count`` equal parts."""
        size = -(-len(self.weight) // count)
        return self.split(
            [min(size, len(self.weight) - at) for at in range(0, len(self.weight), size)]
        )

    def t(self) -> ReadWeight:
        """The same weight the other way round."""
        return ReadWeight(self.change, self.weight.t(), not self.first, self.start)

    def changed(self, x: Tensor, y: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """``y`` = x ``matrix``ᵀ + ``bias`` as methods have it, of the whole layer or of its rows alone.

        It stays contiguous, as products are: their views are taken.
        """
        change, end = self.change, self.start + y.shape[-1]
        apart = change.offset if bias is None else None

        def whole(y: Tensor) -> Tensor:
            y = y if apart is None else y + apart
            if y.shape[-1] == change.total:
                return y
            empty = y.new_zeros(*y.shape[:-1], change.total)
            return torch.slice_scatter(empty, y, -1, self.start, end)

        def again(x: Tensor) -> Tensor:
            return whole(functional.linear(x, matrix, bias))

        result = change.run(x, whole(y), Product(again))
        if y.shape[-1] != change.total:
            result = result[..., self.start : end]
        result = result.to(y.dtype).contiguous()
        return result if apart is None else result - apart

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return self.changed(other, other @ self.weight, self.weight.t())

    def __getitem__(self, index: Any) -> Tensor:
        return self.otherwise()[index]

    def __getattr__(self, name: str) -> Any:
        if name in DESCRIBED:
            return getattr(self.weight, name)
        if name in ("T", "mT"):
            return self.t()
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.otherwise(), name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", func))
        if name == "multi_head_attention_forward":
            return opened(*args, **kwargs)
        found = next((a for a in (*args, *kwargs.values()) if isinstance(a, ReadWeight)), None)
        product = _PRODUCTS[found.change.kind].get(name) if found is not None else None
        result = None if product is None else product(func, *args, **kwargs)
        if result is not None:
            return result
        given, named = cls.seen((args, kwargs))
        return func(*given, **named)

    @classmethod
    def seen(cls, thing: Any) -> Any:
        """``thing`` with changed weights in place of these objects."""
        if isinstance(thing, ReadWeight):
            return thing.otherwise()
        if type(thing) in (tuple, list):
            return type(thing)(map(cls.seen, thing))
        if type(thing) is dict:
            return {k: cls.seen(v) for k, v in thing.items()}  # pyright: ignore[reportUnknownVariableType]
        return thing

    def otherwise(self) -> Tensor:
        """The changed weight, for what is no product.

        Raises:
            SurgeryError: S430 if there is none.

        """
        if self.change.whole is None:
            raise error(
                "S430",
                f"an adapted weight {[*self.weight.shape]} is used otherwise than when the model was read",
                help="a method that merges can be applied to it: its effective weight is read",
            )
        weight = self.change.whole()
        if self.first != (self.change.kind == "transposed"):
            return weight.t()
        return weight.narrow(0, self.start, len(self.weight))


# Each gives None where this is no product with the weight as it stands.


def _linear(func: Any, input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor | None:
    if not isinstance(weight, ReadWeight) or weight.first:
        return None
    return weight.changed(input, func(input, weight.weight, bias), weight.weight, bias)


def _matmul(func: Any, x: Tensor, weight: Any) -> Tensor | None:
    if not isinstance(weight, ReadWeight) or not weight.first:
        return None
    return weight.changed(x, func(x, weight.weight), weight.weight.t())


def _addmm(func: Any, bias: Tensor, x: Tensor, weight: Any) -> Tensor | None:
    if not isinstance(weight, ReadWeight) or not weight.first:
        return None
    return weight.changed(x, func(bias, x, weight.weight), weight.weight.t(), bias)


def _embedding(func: Any, input: Tensor, weight: Any, *rest: Any, **more: Any) -> Tensor | None:
    limited = more.get("max_norm", rest[1] if len(rest) > 1 else None)
    if not isinstance(weight, ReadWeight) or limited is not None:
        return None

    def again(ids: Tensor) -> Tensor:
        return func(ids, weight.weight, *rest, **more)

    y = again(input)
    return weight.change.run(input, y, Product(again)).to(y.dtype)


def _convolution(
    func: Any, input: Tensor, weight: Any, bias: Any = None, *rest: Any, **more: Any
) -> Tensor | None:
    if not isinstance(weight, ReadWeight):
        return None

    offset = weight.change.offset if bias is None else None
    apart = None if offset is None else offset.view(-1, *[1] * (weight.weight.dim() - 2))

    def like(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        return func(x, kernel, bias, *rest, **more)

    def again(x: Tensor) -> Tensor:
        y = like(x, weight.weight, bias)
        return y if apart is None else y + apart

    y = again(input)
    result = weight.change.run(input, y, Product(again, like)).to(y.dtype)
    return result if apart is None else result - apart


def _einsum(func: Any, equation: str, *operands: Any) -> Tensor | None:
    """The changed product of an einsum of two operands, with features last while it is changed."""
    at = next(i for i, operand in enumerate(operands) if isinstance(operand, ReadWeight))
    weight: ReadWeight = operands[at]
    x: Tensor = operands[1 - at]
    pair = (weight.weight, x) if at == 0 else (x, weight.weight)
    terms = letters(equation, (pair[0].dim(), pair[1].dim()))
    if terms is None:
        return None
    own, given, result = terms[at], terms[1 - at], terms[2]
    y: Tensor = torch.einsum(equation, *pair)
    if (own[0] in given) != weight.first:
        return None
    leading = [c for c in given if c not in own]
    into = [given.index(c) for c in (*leading, *(c for c in own if c in given))]
    order = [result.index(c) for c in (*leading, *(c for c in own if c not in given))]
    states, made = x.permute(into), y.permute(order)
    first = len(leading)
    states, flat = states.flatten(first), made.flatten(first)
    sizes = (states.shape[-1], flat.shape[-1])
    matrix = (
        weight.weight.reshape(sizes).t() if weight.first else weight.weight.reshape(sizes[::-1])
    )
    changed = weight.changed(states, flat, matrix).reshape(made.shape)
    changed = changed.permute([order.index(i) for i in range(len(order))])
    return changed.contiguous() if y.is_contiguous() else changed


_MATRICES = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "__matmul__": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
}
_PRODUCTS: dict[LayerKind, dict[str, Callable[..., Tensor | None]]] = {
    "linear": _MATRICES,
    "transposed": _MATRICES,
    "embedding": {"embedding": _embedding},
    "convolution": dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
}


def read_weight(module: nn.Module, name: str, weight: Tensor, form: Form) -> ReadWeight:
    """What stands for ``weight`` of ``module``, whose function ``name`` changes its products."""
    cls: Any = type(module)
    kind, total, offset, whole = form
    function = cls.surgery_functions[name]
    changed = cls.surgery_functions[whole] if whole else None
    change = Change(
        lambda x, y, product: function(module, x, y, product),
        kind,
        total,
        None if offset is None else module._parameters[offset],
        None if changed is None else lambda: changed(module),
    )
    return ReadWeight(change, weight, kind == "transposed")
