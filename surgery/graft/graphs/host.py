"""What an emitter asks of the graph that it writes into, and what the graph may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from surgery.layers.kind import Layer, LayerKind
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression
from surgery.rules.groups import Place


class Emitting(Protocol):
    """What turns the expressions of one site into calls: `surgery.graft.graphs.emit.Emitter`.

    Hidden states have their features ``first`` and ``spatial`` axes behind them, or last; of the
    ``groups`` of a convolution each has an input of its own.
    """

    layer: Layer | None
    sizes: Mapping[str, Scalar]
    first: bool
    spatial: int
    groups: int

    @property
    def host(self) -> Host: ...

    @property
    def done(self) -> Mapping[Expression, Any]:
        """The values that are there already."""
        ...

    def emit(self, e: Expression) -> Any:
        """The value of ``e``; equal expressions are computed once."""
        ...

    def compute(self, e: Expression) -> Any:
        """Emit ``e`` itself."""
        ...

    def place(self, e: Expression) -> Place:
        """Where ``e`` is in a grouped convolution."""
        ...

    def tensor(self, e: Expression, like: Expression) -> Any:
        """The value of ``e``, also of a number as a tensor; ``like`` is one that is there."""
        ...

    def aligned(self, e: Expression, within: Expression) -> Any:
        """``e`` shaped so that it broadcasts against the hidden states of ``within``."""
        ...

    def placed(self, value: Any, e: Expression, place: Place) -> Any:
        """The value of ``e`` as it is met in each group, or at the outputs of each group."""
        ...

    def beside(self, value: Any) -> Any:
        """A vector of parameters shaped so that it broadcasts against hidden states."""
        ...

    def scalar(self, value: Any) -> Any:
        """The number that a dim is at this site."""
        ...

    def is_number(self, e: Expression) -> bool:
        """Whether the value of ``e`` is a number, and no tensor."""
        ...


class Host:
    """A graph, or the running of one: values are nodes, or tensors."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply a function; a ``str`` target is a method of the first argument."""
        raise NotImplementedError

    def leaf(self, expression: Expression) -> Any:
        """The value of an operand or param, the weight in the layer's own layout."""
        raise NotImplementedError

    def module(self) -> Any:
        """The adapted module itself."""
        raise NotImplementedError

    def base(self, x: Any) -> Any:
        """What the adapted module computed of ``x`` before."""
        raise NotImplementedError

    def product(self, kind: LayerKind, x: Any, weight: Any, bias: Any) -> Any:
        """The adapted layer's own operator on ``x``, with another weight and bias."""
        return self.call(kind.run, self.module(), x, weight, bias, *self.more())

    def more(self) -> tuple[Any, ...]:
        """What else the adapted layer is given beside its input, in the order of its forward."""
        return ()

    def training(self) -> Any:
        raise NotImplementedError

    def held(self, name: str, value: Any) -> Any:
        """A module of the model applied to ``value``."""
        raise NotImplementedError

    def real(self, states: Any) -> Any:
        """The mask that tells tokens from padding, [batch, length], or None if there is none.

        ``states`` flow through the model with the tokens it tells of.
        """
        return None

    def fold(self, expression: Expression, emitter: Emitting) -> Any:
        """A value that depends on parameters alone; may be kept between forwards."""
        return emitter.compute(expression)
