"""The forms in which scores become weights, one class each.

Most models call a function that gives the weights at once. Others write a softmax out: a function
gives a total over the keys, and scores become weights by that. Either way new keys have their
share if the function is given the scores of these as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast


class SoftmaxForm:
    """A form of softmax, told by the kind of the ``function`` that is applied to all scores.

    Where that gives no more than a total, ``ends`` is the kind of function that makes weights of it.
    """

    function: str
    ends: str | None = None

    def applies(self, args: Sequence[Any], kwargs: Any, rank: int, last: str) -> bool:
        """Whether a call of the function is over the keys of scores with ``rank`` axes.

        ``last`` is the kind of the step that scores have come by, if any.
        """
        return axis(args, kwargs, None) in (-1, rank - 1)

    def is_end(self, given: Sequence[Any], totals: Sequence[Any]) -> bool:
        """Whether a function of the kind ``ends`` makes weights of the values that it is given.

        ``totals`` are what the function has made of all scores, and what came of that.
        """
        return True

    def weights(self, scores: Any, total: Any, given: Sequence[Any]) -> Any:
        """The weights of keys with these ``scores``, where the end was ``given`` these values."""
        raise NotImplementedError


class WholeSoftmax(SoftmaxForm):
    """`softmax(x)`."""

    function = "softmax"


class LogSumSoftmax(SoftmaxForm):
    """`exp(x - logsumexp(x))`, as Reformer has it."""

    function, ends = "logsumexp", "exp"

    def applies(self, args: Sequence[Any], kwargs: Any, rank: int, last: str) -> bool:
        kept = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        return kept is True and super().applies(args, kwargs, rank, last)

    def weights(self, scores: Any, total: Any, given: Sequence[Any]) -> Any:
        return (scores - total).exp()


class QuotientSoftmax(SoftmaxForm):
    """`e / e.sum(-1)` of `e = exp(x)`, with or without a shift of x, or more in the sum.

    So code ported from other libraries has it, and softmaxes that may weigh nothing: e / (1 + Σ e).
    """

    function, ends = "sum", "div"

    def applies(self, args: Sequence[Any], kwargs: Any, rank: int, last: str) -> bool:
        return last == "exp" and super().applies(args, kwargs, rank, last)

    def is_end(self, given: Sequence[Any], totals: Sequence[Any]) -> bool:
        return any(given[-1] is total for total in totals)

    def weights(self, scores: Any, total: Any, given: Sequence[Any]) -> Any:
        return scores / given[-1]


FORMS: dict[str, SoftmaxForm] = {
    form.function: form for form in (WholeSoftmax(), LogSumSoftmax(), QuotientSoftmax())
}


def axis(args: Sequence[Any], kwargs: Any, default: int | None) -> Any:
    """The axis that a function is told as its second argument."""
    found = args[1] if len(args) > 1 else kwargs.get("dim", default)
    if isinstance(found, list | tuple):
        several = cast("Sequence[Any]", found)
        return several[0] if len(several) == 1 else several
    return found
