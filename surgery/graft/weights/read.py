"""What a module reads in place of a weight that it multiplies with itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from surgery.graft.attention.whole import opened
from surgery.language.diagnostics import error
from surgery.layers import kind_named
from surgery.layers.products import Change, WeightInProducts
from surgery.planning.probe import DESCRIBED

Form = tuple[str, int, int, str | None, str | None]
"""The kind of a layer, its outputs, how many axes stand behind them, and the names of a bias that is
added apart from the product and of the function that gives the whole changed weight."""


class ReadWeight(WeightInProducts):
    """What a module reads in place of a weight, whose products are changed.

    Raises:
        SurgeryError: S430 if anything else is done with it that would see none of the change.

    """

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
        product = found.change.kind.products.get(name) if found is not None else None
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
        if self.first != self.change.kind.transposed:
            return weight.t()
        return weight.narrow(0, self.start, len(self.weight))


def read_weight(module: nn.Module, name: str, weight: Tensor, form: Form) -> ReadWeight:
    """What stands for ``weight`` of ``module``, whose function ``name`` changes its products."""
    cls: Any = type(module)
    called, total, spatial, offset, whole = form
    kind = kind_named(called)
    function = cls.surgery_functions[name]
    changed = cls.surgery_functions[whole] if whole else None
    change = Change(
        lambda x, y, product: function(module, x, y, product),
        kind,
        total,
        spatial,
        None if offset is None else module._parameters[offset],
        None if changed is None else lambda: changed(module),
    )
    return ReadWeight(change, weight, kind.transposed)
