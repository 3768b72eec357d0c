"""What the scores of an attention may go through between their product and the product with values.

Told by the names of functions, as :func:`~surgery.anatomy.roles.operators.kind` gives them. Beside
a model's own keys new ones can be scored where every step is one of these. Arguments may be those
of a call or those in a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from surgery.anatomy.roles.operators import PRODUCTS
from surgery.anatomy.roles.softmaxes import axis, is_last


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SCORED = PRODUCTS - _names("addmm addbmm tensordot mv")
"""Products that score keys, or weigh values."""

ALIKE = _names("""
    to type type_as float half bfloat16 double contiguous clone tanh clamp clamp_min clamp_max
    dropout identity neg relu sigmoid softplus nan_to_num exp exp2 pow rpow detach
    """)
"""Every score alike, whichever key it is of: a soft cap (Gemma 2), a cast, an exponential."""

SCALED = _names("mul div")
"""Every score alike if the other operand has one number for all keys, else each key its own."""

JOINED = _names("add sub where masked_fill maximum minimum max min baddbmm cat concatenate")
"""Each key its own: masks, position biases, sinks. Alike if the other operand is a number.

`baddbmm` adds position biases in one call with the product (BLOOM), `where` puts the mask in (GPT-Neo),
`max` keeps scores from -inf (XGLM), `cat` puts a sink beside them (GPT-OSS)."""

VIEWS = _names("view reshape flatten unflatten view_as reshape_as unsqueeze squeeze")
"""The same scores; the keys stay on the last axis."""

MOVES = _names("transpose permute")
"""The same scores; taken as steps where the last axis stays."""

REDUCTIONS = _names("amax amin max min mean sum logsumexp median")
"""One number of all scores, or of those of each query."""

KEEPS = VIEWS | MOVES | {"getitem", "slice", "detach"}
"""What leaves the scores that it is given to be read again."""

STEPS = ALIKE | SCALED | JOINED | KEEPS

CUTS = VIEWS | MOVES | _names("as_strided contiguous getitem slice")
"""What queries are cut to blocks by, and blocks of a context put together."""

LINEAR = CUTS | _names("to type type_as float half bfloat16 dropout masked_fill pad narrow clone")
"""What weights go through that stay weights, of keys in other places."""


def is_step(
    name: str,
    args: Sequence[Any],
    kwargs: Any,
    before: Sequence[int] | None,
    after: Sequence[int] | None,
) -> bool:
    """Whether a function of the kind ``name`` takes scores or weights a step further.

    ``before`` and ``after`` are their shapes. In a graph that nobody has run they are not known; there
    it may be one.
    """
    if name not in STEPS or (after is not None and len(after) < 2):
        return False
    if name in ("max", "min") and isinstance(axis(args, kwargs, None), int | None):
        return "other" in kwargs  # else the largest score of each query, or of all
    if name == "pow" and not isinstance(args[0] if args else None, int | float):
        return False  # a power of scores, not of a number
    rank = None if before is None else len(before)
    if name in VIEWS:
        return before is None or after is None or before[-1:] == after[-1:]
    if name in MOVES:
        return _keeps_last(name, args, kwargs, rank)
    if name == "getitem":
        return _is_of_last(args[1], rank)
    return name not in ("cat", "slice") or is_last(axis(args, kwargs, 0), rank)


def _keeps_last(name: str, args: Sequence[Any], kwargs: Any, rank: int | None) -> bool:
    if kwargs:
        return False
    axes = cast("Sequence[int]", args[1] if isinstance(args[1], list | tuple) else args[1:])
    if name == "permute":
        return axes[-1] in (-1, len(axes) - 1)
    return all(axis != -1 and (rank is None or axis != rank - 1) for axis in axes)


def _is_of_last(index: Any, rank: int | None) -> bool:
    """Whether an index takes a range of the last axis, and all of the others."""
    if not isinstance(index, tuple):
        return False
    *ahead, last = cast("tuple[Any, ...]", index)
    rest = [part for part in ahead if part is not Ellipsis]
    whole = len(rest) < len(ahead) or rank in (None, len(ahead) + 1)
    return whole and isinstance(last, slice) and all(map(_is_full, rest))


def _is_full(part: Any) -> bool:
    return type(part) is slice and part.start is part.stop is part.step is None
