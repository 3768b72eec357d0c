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

from surgery.anatomy.roles.softmaxes import FORMS, SoftmaxForm
from surgery.anatomy.roles.trails import KEEPS, SCORED, is_step


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

    ``places`` are where it has come to, each with the steps up to there and the kind of the last:
    the last place, and what views and slices were taken of, which may be read again. Once scores have
    been through a softmax, ``scored`` are the steps of scores, and steps are those of weights. Where it
    is written out, ``shares`` are the functions that are to make shares of its total, and ``then``
    those that are to make weights of their logarithms. ``aside`` are numbers for all keys made of the
    scores: shifts of these, or the total; ``inverses`` are those that were divided by. ``products`` are
    those of the weights.
    """

    def __init__(self, product: Any, result: V):
        self.product = product
        self.places: list[tuple[V, list[Any], str]] = [(result, [], "")]
        self.scored: list[Any] | None = None
        self.shares: frozenset[str] = frozenset()
        self.then: frozenset[str] = frozenset()
        self.aside: list[V] = []
        self.inverses: list[V] = []
        self.products: list[Any] = []

    def reached(self, given: Sequence[V]) -> V | None:
        """The place on the trail that is among ``given``."""
        for place, _, _ in reversed(self.places):
            if among(place, given):
                return place
        return None

    def steps(self, place: V) -> list[Any]:
        """The steps that led to ``place``."""
        # What is changed in place stands there more than once.
        return next(steps for value, steps, _ in reversed(self.places) if value is place)

    def last(self, place: V) -> str:
        """The kind of the last step that led to ``place``."""
        return next(kind for value, _, kind in reversed(self.places) if value is place)

    @property
    def is_weights(self) -> bool:
        """Whether it has come to weights."""
        return self.scored is not None and not (self.shares or self.then)

    def go(self, step: Any, kind: str, before: V, result: V) -> None:
        """Go on by a step from ``before``."""
        there = (result, [*self.steps(before), step], kind)
        self.places = [*self.places, there] if kind in KEEPS else [there]
        if self.scored is not None and kind in self.then and not self.shares:
            self.then = frozenset()

    def soften(self, form: SoftmaxForm, before: V, made: V) -> None:
        """Go on with what the function of a ``form`` has made of the scores ``before``."""
        self.scored, self.aside = self.steps(before), [made] if form.shares else []
        self.shares, self.then = form.shares, form.then
        self.places = [(before if form.shares else made, [], "")]

    def takes_share(self, kind: str, given: Sequence[V], before: V) -> bool:
        """Whether a function of this kind makes shares of the total and what was made of the scores."""
        others = [value for value in given if value is not before]
        if kind not in self.shares or len(others) != 1:
            return False
        if kind == "mul":
            return among(others[0], self.inverses)
        return given[0] is before and among(others[0], self.aside)


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
        """What a softmax makes of scores; None where the trail is not to be followed on."""
        raise NotImplementedError

    def weighed(self, trail: Trail[V], call: FunctionCall[V], weights: V) -> V | None:
        """The product of ``weights`` with values; None if it is of something else."""
        raise NotImplementedError

    def strayed(self, call: FunctionCall[V]) -> Any:
        """A softmax of what has come from no product by known steps; None where it is let run."""
        raise NotImplementedError

    def ended(self, trail: Trail[V], call: FunctionCall[V]) -> None:
        """Take note that the call has given the weights of a softmax that is written out."""

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
            if call.given and self.form(call, len(call.given[0].shape), "") is not None:
                result = self.strayed(call)
                if result is not None:
                    return result
        elif trail.is_weights:
            result = self.weighed(trail, call, before) if call.kind in SCORED else None
            if result is not None:
                return result
        elif trail.scored is None:
            form = self.form(call, len(before.shape), trail.last(before))
            if form is not None:
                return self.soften(form, trail, call, before)
        result = self.run(call)
        self.note(trail, before, call, result)
        return result

    def nearest(self, given: Sequence[V]) -> tuple[Trail[V] | None, V | None]:
        """The first trail that has come to one of the values, and to which.

        To none of them, if it is a number for all its keys that is among them. Weights come first:
        values may be on the trail of the product that projected them.
        """
        if not self.trails:
            return None, None
        for weights in (True, False):
            for trail in self.trails:
                if (trail.scored is not None) is not weights:
                    continue
                before = trail.reached(given)
                if before is not None:
                    return trail, before
                if trail.aside and any(among(value, trail.aside) for value in given):
                    return trail, None
        return None, None

    def form(self, call: FunctionCall[V], rank: int, last: str) -> SoftmaxForm | None:
        """The form of softmax, if the call makes weights, or their total, of scores."""
        form = FORMS.get(call.kind)
        applies = form is not None and form.applies(call.args, call.kwargs, rank, last)
        return form if applies else None

    def soften(self, form: SoftmaxForm, trail: Trail[V], call: FunctionCall[V], before: V) -> Any:
        """The softmax of a trail's scores."""
        made = self.softened(trail, call, before)
        if made is None:
            self.leave(trail)
            return self.run(call)
        trail.soften(form, before, made)
        return made

    def note(
        self, trail: Trail[V] | None, before: V | None, call: FunctionCall[V], result: Any
    ) -> None:
        """Take note of a call that is no softmax, and no product with values, of a trail."""
        value = self.value(result)
        if call.kind in SCORED and value is not None and (trail is None or trail.scored is None):
            self.begin(call, value)
        if trail is None:
            return
        if before is not None and trail.aside and self.rescales(trail, before, call):
            self.leave(trail)
            return
        if before is not None and value is not None:
            if call.kind == "setitem":
                self.overwrite(trail, call, before, value)
                return
            if is_step(call.kind, call.args, call.kwargs, before.shape, value.shape):
                self.go(trail, call, before, value)
                return
        if call.kind not in SCORED:
            self.set_aside(trail, before, call, result)

    def go(self, trail: Trail[V], call: FunctionCall[V], before: V, value: V) -> None:
        """Go on by a step, and see whether it makes weights."""
        wanted = trail.scored is not None and not trail.is_weights
        if trail.takes_share(call.kind, call.given, before):
            trail.shares = frozenset()
        trail.go(self.step(call, before, value), call.kind, before, value)
        if wanted and trail.is_weights:
            self.ended(trail, call)

    def rescales(self, trail: Trail[V], before: V, call: FunctionCall[V]) -> bool:
        """Whether weights are scaled by what was made of all of them: new keys had no share in that."""
        if not trail.is_weights:
            return False
        return any(v is not before and among(v, trail.aside) for v in call.given)

    def set_aside(
        self, trail: Trail[V], before: V | None, call: FunctionCall[V], result: Any
    ) -> None:
        """Take note of what is one number for all keys: a shift of scores, or a softmax's total."""
        known = [v.shape for v in call.given if among(v, trail.aside)]
        shapes = known if before is None else [before.shape[:-1]]
        found = [v for v in self.values(result) if _is_for_all(v.shape, shapes)]
        trail.aside += found
        if before is None and (_inverts(call) or any(among(v, trail.inverses) for v in call.given)):
            trail.inverses += found

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
            trail.places = [
                (value if place is before else place, steps, kind)
                for place, steps, kind in trail.places
            ]

    def leave(self, trail: Trail[V]) -> None:
        """Follow ``trail`` no further."""
        self.trails = [other for other in self.trails if other is not trail]


def among(thing: Any, values: Sequence[Any]) -> bool:
    """Whether ``thing`` is one of ``values``."""
    # A loop: this is asked for each function that runs in an attention.
    for value in values:  # noqa: SIM110
        if value is thing:
            return True
    return False


def _inverts(call: FunctionCall[Any]) -> bool:
    """Whether a number is divided by what a call is given."""
    if call.kind == "pow":
        exponent = call.args[1] if len(call.args) > 1 else call.kwargs.get("exponent")
        return exponent == -1
    return call.kind in ("reciprocal", "rdiv") or (call.kind == "div" and call.args[0] == 1)


def _is_for_all(shape: Sequence[int], shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a value of this shape is one number for all keys, where such have had ``shapes``."""
    # Lengths first: what is compiled for any size is to compare no sizes that need not agree.
    alike = (other for other in shapes if len(other) == len(shape))
    return tuple(shape[-1:]) == (1,) or any(tuple(shape) == tuple(other) for other in alike)
