"""From a product of queries and keys to that of weights and values: one walk for records and runs.

A :class:`Follower` is shown calls of functions in the order in which they run. It tells which product
the scores of each softmax come from, what scores and weights went through on their way, and which
product weighs values with them. What these calls are, it does not care: operators of a record, to
read a model (`anatomy/roles/scores.py`), or functions that are about to run, to change what they
give (`graft/attention/reroute.py`), or nodes of a graph, to rewrite these
(`graft/attention/written.py`). Values are told apart by identity, and have a shape, if it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from surgery.anatomy.roles.softmaxes import FORMS, SoftmaxForm, axis
from surgery.anatomy.roles.trail import FunctionCall, Trail, V, among
from surgery.anatomy.roles.trails import REDUCTIONS, SCORED, is_step


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
            if call.given and self.form(call, call.given[0], "") is not None:
                result = self.strayed(call)
                if result is not None:
                    return result
        elif trail.is_weights:
            result = self.weighed(trail, call, before) if call.kind in SCORED else None
            if result is not None:
                return result
        elif trail.scored is None:
            form = self.form(call, before, trail.last(before))
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
                made = trail.aside + trail.unsure if trail.unsure else trail.aside
                if made and any(among(value, made) for value in given):
                    return trail, None
        return None, None

    def form(self, call: FunctionCall[V], scores: V, last: str) -> SoftmaxForm | None:
        """The form of softmax, if the call makes weights, or their total, of ``scores``."""
        form = FORMS.get(call.kind)
        if form is None:
            return None
        rank = None if scores.shape is None else len(scores.shape)
        applies = form.applies(call.args, call.kwargs, rank, last)
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
        if any(among(value, trail.unsure) for value in call.given):
            self.leave(trail)
            return
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
        made = self.values(result)
        found = [value for value in made if _is_for_all(value, call, before, trail.aside)]
        trail.aside += found
        trail.unsure += [v for v in made if v.shape is None and not among(v, found)]
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


def _inverts(call: FunctionCall[Any]) -> bool:
    """Whether a number is divided by what a call is given."""
    if call.kind == "pow":
        exponent = call.args[1] if len(call.args) > 1 else call.kwargs.get("exponent")
        return exponent == -1
    return call.kind in ("reciprocal", "rdiv") or (call.kind == "div" and call.args[0] == 1)


def _is_for_all(value: V, call: FunctionCall[V], before: V | None, aside: Sequence[V]) -> bool:
    """Whether what a call made of scores, or of what is ``aside``, is one number for all keys."""
    shape, known = value.shape, [v.shape for v in call.given if among(v, aside)]
    if shape is None:
        if before is None:
            return len(known) == len(call.given)
        return call.kind in REDUCTIONS and axis(call.args, call.kwargs, None) in (None, -1)
    if before is not None and before.shape is not None:
        known = [before.shape[:-1]]
    # Lengths first: what is compiled for any size is to compare no sizes that need not agree.
    alike = (other for other in known if other is not None and len(other) == len(shape))
    return tuple(shape[-1:]) == (1,) or any(tuple(shape) == tuple(other) for other in alike)
