"""The forms in which scores become weights, one row each.

Most models call a function that gives the weights at once. Others write a softmax out: a function gives
a total over the keys, and scores take their share of it. Either way new keys have their share if that
function is given the scores of these as well, and these go through what the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

EXPONENTIALS = frozenset(("exp", "exp2", "pow", "rpow"))
"""What makes exponentials of scores; `pow` where these are the exponent of a number."""


@dataclass(frozen=True)
class SoftmaxForm:
    """A form of softmax, told by the kind of the ``function`` that is applied to the scores of all keys.

    It is one only where scores came to the function by a step of a kind in ``behind``. If it gives a
    total, functions of the kinds in ``shares`` make shares of scores and total: what is divided by it,
    times its inverse, or less by its logarithm. Logarithms of weights become these by one of ``then``.
    """

    function: str
    behind: frozenset[str] = frozenset()
    shares: frozenset[str] = frozenset()
    then: frozenset[str] = frozenset()

    @property
    def is_whole(self) -> bool:
        """Whether the function gives weights, and nothing is left to be done."""
        return not (self.shares or self.then)

    def applies(self, args: Sequence[Any], kwargs: Any, rank: int | None, last: str) -> bool:
        """Whether a call of the function is over the keys of scores with ``rank`` axes, if known.

        ``last`` is the kind of the step that scores have come by, if any.
        """
        over_keys = is_last(axis(args, kwargs, None), rank)
        return over_keys and (not self.behind or last in self.behind)


FORMS: dict[str, SoftmaxForm] = {
    form.function: form
    for form in (
        SoftmaxForm("softmax"),
        # softmin(x) is softmax(-x).
        SoftmaxForm("softmin"),
        # exp(log_softmax(x))
        SoftmaxForm("log_softmax", then=EXPONENTIALS),
        # Reformer: exp(x - logsumexp(x))
        SoftmaxForm("logsumexp", shares=frozenset(("sub",)), then=EXPONENTIALS),
        # e / e.sum(-1) of e = exp(x), with or without a shift of x, or more in the sum.
        SoftmaxForm("sum", behind=EXPONENTIALS, shares=frozenset(("div", "mul"))),
    )
}


def axis(args: Sequence[Any], kwargs: Any, default: int | None) -> Any:
    """The axis that a function is told as its second argument."""
    found = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", default))
    if isinstance(found, list | tuple):
        several = cast("Sequence[Any]", found)
        return several[0] if len(several) == 1 else several
    return found


def is_last(axis: Any, rank: int | None) -> bool:
    """Whether this is the last of ``rank`` axes; where that is not known, it may be."""
    return axis == -1 or (type(axis) is int and axis >= 0 and rank in (None, axis + 1))
