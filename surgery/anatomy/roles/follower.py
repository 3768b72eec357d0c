"""From a product of queries and keys to that of weights and values: one walk for records and runs.

A :class:`Follower` is shown calls of functions in the order in which they run. It tells which product
the scores of each softmax come from, what scores and weights went through on their way, and which
product weighs values with them. What these calls are, it does not care: operators of a record, to
read a model (`anatomy/roles/scores.py`), or functions that are about to run, to change what they
give (`graft/attention/reroute.py`). Values are told apart by identity, and have a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from surgery.anatomy.roles.trails import KEEPS, SCORED, is_step, softens


class Shaped(Protocol):
    """A value that functions take and give: a tensor, or what stands for one."""

    @property
    def shape(self) -> Sequence[int]: ...


V = TypeVar("V", bound=Shaped)


class FunctionCall(Generic[V]):
    """A function of the kind ``kind``, with its arguments; ``given`` are the values among them.

    ``function`` is what is called, whatever the follower makes of it.
    """

    __slots__ = ("args", "function", "given", "kind", "kwargs")

    def __init__(
        self,
        kind: str,
        function: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given: Sequence[V],
    ):
        self.kind = kind
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.given = given


class Trail(Generic[V]):
    """One product, followed through the softmax of its scores to products with values.

    ``places`` are where it has come to, each with the steps up to there: the last one, and what views
    and slices were taken of, which may be read again. Once scores have become weights, ``scored`` are
    the steps of scores, and steps are those of weights. A softmax that is ``written`` out has given
    the logarithm of its sum, and its weights are still to be exponentiated. ``shifts`` are numbers
    that scores of every key are shifted by; ``products`` are those of the weights.
    """

    def __init__(self, product: Any, result: V):
        self.product = product
        self.places: list[tuple[V, list[Any]]] = [(result, [])]
        self.scored: list[Any] | None = None
        self.written = False
        self.shifts: list[V] = []
        self.products: list[Any] = []

    def reached(self, given: Sequence[V]) -> V | None:
        """The place on the trail that is among ``given``."""
        for place, _ in reversed(self.places):
            if among(place, given):
                return place
        return None

    def steps(self, place: V) -> list[Any]:
        """The steps that led to ``place``."""
        # What is changed in place stands there more than once.
        return next(steps for value, steps in reversed(self.places) if value is place)

    def go(self, step: Any, kind: str, before: V, result: V) -> None:
        """Go on by a step from ``before``."""
        there = (result, [*self.steps(before), step])
        self.places = [*self.places, there] if kind in KEEPS else [there]

    def soften(self, before: V, weights: V, written: bool) -> None:
        """Go on with ``weights`` of the scores ``before``."""
        self.scored, self.shifts = self.steps(before), []
        self.written = written
        self.places = [(before if written else weights, [])]

    def exponentiate(self, weights: V) -> None:
        """Go on with ``weights`` of a softmax that is written out."""
        self.written = False
        self.places = [(weights, [])]


class Follower(Generic[V]):
    """The trails that there are, and what each call makes of them.

    Those who follow say what a call gives (:meth:`run`), and may change it where a product's scores
    are softened, where their weights meet values, and where it is not known what is softened.
    """

    def __init__(self) -> None:
        self.trails: list[Trail[V]] = []

    def run(self, call: FunctionCall[V]) -> Any:
        """What the call gives."""
        raise NotImplementedError

    def softened(self, trail: Trail[V], call: FunctionCall[V], before: V) -> V | None:
        """The weights of scores; None where the trail is not to be followed on."""
        raise NotImplementedError

    def weighed(self, trail: Trail[V], call: FunctionCall[V], weights: V) -> V | None:
        """The product of ``weights`` with values; None if it is of something else."""
        raise NotImplementedError

    def strayed(self, call: FunctionCall[V]) -> Any:
        """A softmax of what has come from no product by known steps; None where it is let run."""
        raise NotImplementedError

    def product(self, call: FunctionCall[V]) -> Any:
        """What a trail is to know of the product that it begins with; None if it is no product."""
        raise NotImplementedError

    def step(self, call: FunctionCall[V], before: V, result: V) -> Any:
        """What a trail is to know of a step that made ``result`` of ``before``."""
        raise NotImplementedError

    def value(self, result: Any) -> V | None:
        """The one value that a call has given; None if it gave several, or none."""
        raise NotImplementedError

    def follow(self, call: FunctionCall[V]) -> Any:
        """What the next call gives, of which note is taken."""
        trail, before = self.nearest(call.given)
        if trail is None or before is None:
            if self.softens(call, call.given[0] if call.given else None):
                result = self.strayed(call)
                if result is not None:
                    return result
        elif trail.scored is not None:
            result = self.weigh(trail, call, before)
            if result is not None:
                return result
        elif self.softens(call, before):
            return self.soften(trail, call, before)
        result = self.run(call)
        self.note(trail, before, call, result)
        return result

    def nearest(self, given: Sequence[V]) -> tuple[Trail[V] | None, V | None]:
        """The first trail that has come to one of the values, and to which.

        To none of them, if it is a shift of all its scores that is among them. Weights come first:
        values may be on the trail of the product that projected them.
        """
        for weights in (True, False):
            for trail in self.trails:
                if (trail.scored is not None) is not weights:
                    continue
                before = trail.reached(given)
                if before is not None:
                    return trail, before
                for value in given:
                    if among(value, trail.shifts):
                        return trail, None
        return None, None

    def softens(self, call: FunctionCall[V], before: V | None) -> bool:
        """Whether the call makes weights of the scores ``before``."""
        return before is not None and softens(call.kind, call.args, call.kwargs, len(before.shape))

    def soften(self, trail: Trail[V], call: FunctionCall[V], before: V) -> Any:
        """The softmax of a trail's scores."""
        weights = self.softened(trail, call, before)
        if weights is None:
            self.leave(trail)
            return self.run(call)
        trail.soften(before, weights, call.kind == "logsumexp")
        return weights

    def weigh(self, trail: Trail[V], call: FunctionCall[V], weights: V) -> Any:
        """The product of a trail's weights with values, or the end of a softmax written out."""
        if call.kind in SCORED and not trail.written:
            return self.weighed(trail, call, weights)
        if call.kind == "exp" and trail.written:
            result = self.run(call)
            exponentiated = self.value(result)
            if exponentiated is not None:
                trail.exponentiate(exponentiated)
            return result
        return None

    def note(
        self, trail: Trail[V] | None, before: V | None, call: FunctionCall[V], result: Any
    ) -> None:
        """Take note of a call that is no softmax, and no product with values, of a trail."""
        value = self.value(result)
        if call.kind in SCORED and value is not None and (trail is None or trail.scored is None):
            self.begin(call, value)
        if trail is None:
            return
        if before is not None and value is not None:
            if call.kind == "setitem":
                self.overwrite(trail, call, before, value)
                return
            if is_step(call.kind, call.args, call.kwargs, before.shape, value.shape):
                trail.go(self.step(call, before, value), call.kind, before, value)
                return
        if trail.scored is None and call.kind not in SCORED:
            trail.shifts += [v for v in self.values(result) if tuple(v.shape)[-1:] == (1,)]

    def values(self, result: Any) -> Sequence[V]:
        """All values that a call has given."""
        value = self.value(result)
        return [] if value is None else [value]

    def begin(self, call: FunctionCall[V], result: V) -> None:
        """Begin a trail at a product."""
        product = self.product(call)
        if product is not None:
            self.trails.append(Trail(product, result))

    def overwrite(self, trail: Trail[V], call: FunctionCall[V], before: V, value: V) -> None:
        """A number in some places is no step: to those who read, the tensor is the same."""
        if call.given[0] is before and isinstance(call.args[-1], int | float):
            trail.places = [(value if p is before else p, steps) for p, steps in trail.places]

    def leave(self, trail: Trail[V]) -> None:
        """Follow ``trail`` no further."""
        self.trails = [other for other in self.trails if other is not trail]


def among(thing: Any, values: Sequence[Any]) -> bool:
    """Whether ``thing`` is one of ``values``."""
    return any(value is thing for value in values)
