"""Whether what is added to a program holds for all sizes that the program does."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice, product
from typing import Any

from torch._subclasses import fake_impls

from surgery.language.diagnostics import error

_TRIED = 4096
"""Sizes from which on no other is tried."""


@contextmanager
def any_size(mode: Any) -> Generator[None]:
    """Inside, operations on the fake tensors of ``mode`` may compare sizes only as holds for all.

    Nothing is noted in the symbols themselves, which the program that is given has, too. That a size
    is neither 0 nor 1 may be asked: operators do, of strides, and compute the same for all sizes.

    Raises:
        SurgeryError: S441 for a comparison that some sizes of the program would decide otherwise.

    """
    shapes = getattr(mode, "shape_env", None)
    if shapes is None:
        yield
        return
    asked: list[tuple[Any, Any]] = []

    def note(expression: Any, value: Any) -> None:
        if not _chooses_kernel():
            asked.append((expression, value))

    shapes._check_frozen = note
    try:
        with shapes.suppress_guards():
            yield
    finally:
        del shapes._check_frozen
    for expression, value in asked:
        if any(found != value for found in _values(shapes, expression)):
            raise error(
                "S441",
                f"what the spec adds would hold for fewer sizes than the program does: {expression} "
                f"would have to be {value}",
                help="export the model with that dim fixed, or apply the spec to the model and export that",
            )


def _chooses_kernel() -> bool:
    """Whether a fake convolution asks: which kernel is quicker for a batch, not what comes of it."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not fake_impls.conv.__code__:
        frame = frame.f_back
    return frame is not None


def _values(shapes: Any, expression: Any) -> Iterator[Any]:
    """What ``expression`` is for sizes from 2 on, in the ranges that their symbols have."""
    symbols = sorted(expression.free_symbols, key=str)
    choices: list[list[int]] = []
    for symbol in symbols:
        known = shapes.var_to_range.get(symbol)
        low, high = (
            (2, _TRIED) if known is None else (max(2, known.lower), min(_TRIED, known.upper))
        )
        tried = {low, low + 1, low + 2, 7, 8, 64, high - 1, high}
        choices.append(sorted(int(size) for size in tried if low <= size <= high) or [int(high)])
    for sizes in islice(product(*choices), 500):
        yield expression.xreplace(dict(zip(symbols, map(_integer, sizes), strict=True)))


def _integer(value: int) -> Any:
    import sympy  # pyright: ignore[reportMissingTypeStubs]

    return sympy.Integer(value)
