"""What is odd about a spec on a model, and no error: told as Python tells it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from surgery.language.diagnostics import Diagnostic, render


class SurgeryWarning(UserWarning):
    """What a plan warns of; also there as data, in ``plan.warnings``."""


def _is_own(name: str) -> bool:
    return name.partition(".")[0] == "surgery"


def warn(found: Iterable[Diagnostic]) -> None:
    """Warn of each finding, at the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_own(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    for diagnostic in found:
        warnings.warn(render(diagnostic), SurgeryWarning, stacklevel=level)
