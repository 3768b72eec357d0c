"""One product of queries and keys on its way through a softmax, and the calls of functions it meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from surgery.anatomy.roles.softmaxes import SoftmaxForm
from surgery.anatomy.roles.trails import KEEPS


class Shaped(Protocol):
    """A value that functions take and give: a tensor, or what stands for one."""

    @property
    def shape(self) -> Sequence[int] | None:
        """None in a graph that nobody has run."""
        ...


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
    scores, ``shifts`` of these before a softmax, then its total; ``inverses`` are those that were divided by, and of ``unsure``
    ones it is not known whether they are. ``products`` are those of the weights.
    """

    def __init__(self, product: Any, result: V):
        self.product = product
        self.places: list[tuple[V, list[Any], str]] = [(result, [], "")]
        self.scored: list[Any] | None = None
        self.shares: frozenset[str] = frozenset()
        self.then: frozenset[str] = frozenset()
        self.aside: list[V] = []
        self.shifts: list[V] = []
        self.inverses: list[V] = []
        self.unsure: list[V] = []
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
        self.scored, self.shifts = self.steps(before), self.aside
        self.aside = [made] if form.shares else []
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


def among(thing: Any, values: Sequence[Any]) -> bool:
    """Whether ``thing`` is one of ``values``."""
    # A loop: this is asked for each function that runs in an attention.
    for value in values:  # noqa: SIM110
        if value is thing:
            return True
    return False
