"""What an emitter asks of the graph it writes into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.layers.kind import LayerKind
from surgery.rules.expression import Expression

if TYPE_CHECKING:
    from surgery.graft.graphs.emit import Emitter


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

    def fold(self, expression: Expression, emitter: Emitter) -> Any:
        """A value that depends on parameters alone; may be kept between forwards."""
        return emitter.compute(expression)
