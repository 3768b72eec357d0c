"""Spectra: complex numbers that a rule makes, and must end before it assigns them."""

from __future__ import annotations

from surgery.language.diagnostics import error
from surgery.language.source import Span
from surgery.rules.expression import Expression
from surgery.rules.primitives import PRIMITIVES


def is_spectrum(e: Expression) -> bool:
    """Whether the values of ``e`` are complex numbers, which `fft` has made."""
    row = PRIMITIVES.get(e.op)
    if row is not None and row.spectrum:
        return row.spectrum == "makes"
    return any(map(is_spectrum, e.arguments))


def check_real(e: Expression, span: Span | None) -> None:
    """Hold a value against being a spectrum.

    Raises:
        SurgeryError: S255 if it is one.

    """
    if is_spectrum(e):
        raise error(
            "S255",
            f"`{e}` is a spectrum, of complex numbers",
            span,
            help="`ifft(z, over = d)` ends it",
        )
