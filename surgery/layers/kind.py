"""What a kind of layer has to say, and all kinds that are known.

A layer of any kind is the operator `linear` on something: a convolution on patches of its input, an
embedding on one-hot ids. So a kind says how its weight is a matrix [n, m], how to run its operator
with another weight, and where such a weight is multiplied with. Rules know nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from surgery.language.diagnostics import error

Call = Callable[..., Any]
"""Applies a function, or a method by its name, to nodes of a graph or to tensors."""


@dataclass(frozen=True)
class Reads:
    """Where a function of exported programs has a layer's input, weight and bias among its arguments.

    ``make`` gives the layer that the function stands for, from an argument by its place and from
    the weight and the bias. ``holds`` tells by the arguments whether it is one of the kind.
    """

    input: int
    weight: int
    bias: int | None
    make: Callable[[Callable[[int], Any], Any, Any], nn.Module]
    holds: Callable[[Callable[[int], Any]], bool] = lambda _: True


class LayerKind:
    """A kind of layer, of which there is one object: see docs/extending/layer-kind.md.

    The defaults are those of a weight [n, …] whose rows are the outputs.
    """

    name: ClassVar[str]
    """What reports call it. Pickles know the kind by this."""
    classes: ClassVar[tuple[type[nn.Module] | str, ...]]
    """The classes of its modules, or their full names where the library need not be there."""
    methods: ClassVar[tuple[str, ...]] = ("forward",)
    """What a subclass must have as it is, to compute what its kind does."""
    features: ClassVar[bool] = False
    """Whether the input is hidden states, which any operator may take. If not, a rule may only
    multiply it with matrices, as patches and ids."""
    one_hot: ClassVar[bool] = False
    """Whether the input is ids, each a one-hot vector. There is no bias then: what is added to the
    result is added to each row of the table, as a one-hot vector sums to one."""
    transposed: ClassVar[bool] = False
    """Whether the weight is held as a matrix [m, n]."""
    run: ClassVar[Callable[..., Tensor]]
    """The operator of a module with another weight: a function of the module, its input, the weight,
    the bias or None, and whatever else the forward is given. Only where input is no features. It
    stands at the top of a file, as graphs that call it are pickled by their code."""
    written: ClassVar[Callable[..., Tensor] | None] = None
    """The function of input, weight and bias that the forward is, where it may be written out."""
    products: ClassVar[Mapping[str, Callable[..., Tensor | None]]] = {}
    """The functions of torch, by name, that multiply with a weight of the kind, each with the one
    that does so with an adapted weight (see layers/products.py)."""

    exported: ClassVar[Mapping[Any, Reads]] = {}
    """The functions of exported programs that such layers become."""

    @property
    def class_names(self) -> frozenset[str]:
        """The full names of the classes."""
        return frozenset(_full_name(c) if isinstance(c, type) else c for c in self.classes)

    @property
    def straight(self) -> frozenset[str]:
        """Those of them that a forward of a layer's own may give the weight to as it is held."""
        return frozenset(self.products)

    def read(self, module: nn.Module) -> Layer:
        """The sizes of a module of one of the ``classes``; the rest of a `Layer` is filled in."""
        out, *columns = cast("Tensor", module.weight).shape
        return Layer(self, out, prod(columns), columns=tuple(columns))

    def as_matrix(self, call: Call, layer: Layer, weight: Any) -> Any:
        """The weight as a matrix [n, m]."""
        return call(torch.flatten, weight, 1) if layer.columns else weight

    def as_weight(self, call: Call, layer: Layer, matrix: Any) -> Any:
        """A matrix [rows, m] as the weight of a layer with so many outputs."""
        return call("unflatten", matrix, 1, layer.columns) if layer.columns else matrix

    def examples(
        self, module: nn.Module, layer: Layer, weight: Tensor
    ) -> Iterator[tuple[Any, ...]]:
        """What a forward of such a layer may be given, in every layout that there is."""
        for shape in ((2, 3, layer.into), (2, layer.into), (2, layer.into, 3)):
            yield (weight.new_ones(shape),)

    def title(self, layer: Layer) -> str:
        """The kind in reports: `convolution 2d`."""
        return f"{self.name} {layer.spatial}d" if layer.spatial else self.name

    def flops(self, layer: Layer) -> int | None:
        """Floating-point operations for each token; None where tokens are not what it runs on."""
        return None if layer.spatial else 2 * layer.out * layer.into

    def __reduce__(self) -> tuple[Callable[[str], LayerKind], tuple[str]]:
        return kind_named, (self.name,)


@dataclass(frozen=True)
class Layer:
    """A linear-like layer. ``groups`` > 1 for grouped convolutions, whose groups share no inputs.

    ``native`` says that the class computes what its kind does, so that its forward may be
    written out. Otherwise its own forward is called: one that was tried and gives the same, or one
    that is to ``read`` the changed weight, or (a quantised linear's) one that has none to change.
    """

    kind: LayerKind
    out: int
    into: int
    bias: bool = False
    spatial: int = 0
    groups: int = 1
    columns: tuple[int, ...] = ()
    """The axes that a row of the matrix is of in the weight: channels and places of a kernel."""
    native: bool = True
    read: bool = False
    """Whether what is read as the weight is changed: by the parent that never calls the layer
    (`nn.MultiheadAttention`), or by a forward of the layer's own that does more than multiply."""
    plain: bool = True
    """Whether the weight and the bias are parameters that the layer uses as they are."""
    weight: str = "weight"
    offset: str = "bias"
    """The names of the weight and of the bias in the module that holds them."""
    experts: int = 0
    """How many experts have their weights in one parameter; 0 where there is one weight."""
    among: int | None = None
    """Where the result stands in what the module returns, if not alone."""
    held: tuple[int, ...] = ()
    """The shape of a weight that is no module's, of as many dims as its module multiplies with."""
    states: int | None = None
    """How many dims the states have that a weight which is read is multiplied with, if known."""
    length_first: bool = False
    """Whether they are [length, batch, features], whichever way round its module is given them."""
    straight: bool = True
    """Whether nothing else is done with a weight that is read than to multiply with it."""
    adds: bool = True
    """Whether what reads the weight reads the bias, too."""

    @property
    def names(self) -> dict[str, str]:
        """The parameters that a rule calls `W` and `b`."""
        return {"W": self.weight, "b": self.offset}

    @property
    def is_closed(self) -> bool:
        """Whether nothing is known of what a forward of its own does with its weight."""
        return not (self.native or self.plain or self.read)

    @property
    def is_own(self) -> bool:
        """Whether a forward of the layer's own reads the weight, and no other module."""
        elsewhere = self.native or self.held or self.experts or self.states is not None
        return self.read and not elsewhere

    @property
    def title(self) -> str:
        """What it is, in reports."""
        return self.kind.title(self)

    def as_matrix(self, call: Call, weight: Any) -> Any:
        """The weight as the module holds it → the matrix [n, m]."""
        if len(self.held) > 2:
            sizes = (self.out, self.into)
            weight = call("reshape", weight, *(sizes[::-1] if self.kind.transposed else sizes))
        return self.kind.as_matrix(call, self, weight)

    def as_weight(self, call: Call, matrix: Any) -> Any:
        """The matrix [n, m] → the weight as the module holds it."""
        weight = self.kind.as_weight(call, self, matrix)
        return call("reshape", weight, *self.held) if self.held else weight


def named_rank(named: int | None, layer: Layer | None) -> int | None:
    """How many dims a call gives an input of which a rule names ``named`` beside its features.

    Ids have none of these. None if the rule names no dims.
    """
    if named is None:
        return None
    return named + (layer is None or not layer.kind.one_hot)


def holding(module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """``module`` with these very parameters."""
    module._parameters["weight"] = weight
    if bias is not None:
        module._parameters["bias"] = bias
    return module


_KINDS: dict[str, LayerKind] = {}
_CLASSES: dict[str, LayerKind] = {}


def register(kind: LayerKind) -> LayerKind:
    """Let layers of ``kind`` be known from now on; the kind itself, so that it can be kept.

    A kind of the same class takes the place of the one before, as when a notebook's cell is run
    again.

    Raises:
        SurgeryError: S450 if its name, or one of its classes, is another kind's.

    """
    full = sorted(kind.class_names)
    for known in (_KINDS.get(kind.name), *(_CLASSES.get(name) for name in full)):
        if known is not None and _full_name(type(known)) != _full_name(type(kind)):
            raise error(
                "S450",
                f"the layer kind `{kind.name}` cannot be registered: `{known.name}` has the same "
                "name, or is the kind of the same class",
                help="give it a name and classes of its own, such as a subclass",
            )
    _KINDS[kind.name] = kind
    _CLASSES.update(dict.fromkeys(full, kind))
    _found.cache_clear()
    return kind


def kinds() -> tuple[LayerKind, ...]:
    """Every kind that is known, in the order in which they were registered."""
    return tuple(_KINDS.values())


def kind_named(name: str) -> LayerKind:
    """The kind that reports and pickles call so.

    Raises:
        SurgeryError: S451 if it is not registered.

    """
    if name not in _KINDS:
        raise error(
            "S451",
            f"no layer kind `{name}` is registered",
            help="import the module that registers it before the model is loaded",
        )
    return _KINDS[name]


def kind_of(cls: type[nn.Module]) -> tuple[LayerKind, type[nn.Module]] | None:
    """The kind of a class, with the one of its bases that makes it this kind; None if it has none."""
    return _found(cls)


@lru_cache(maxsize=4096)
def _found(cls: type[nn.Module]) -> tuple[LayerKind, type[nn.Module]] | None:
    for base in cls.__mro__:
        kind = _CLASSES.get(_full_name(base))
        if kind is not None:
            return kind, base
    return None


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
