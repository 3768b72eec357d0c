"""What is odd and no error, told as Python tells it."""

from __future__ import annotations

import sys
import warnings

from surgery.language.diagnostics import SurgeryWarning


def warn(*findings: str | None) -> None:
    """Warn of each finding that there is, at the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_own(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    for finding in findings:
        if finding:
            warnings.warn(finding, SurgeryWarning, stacklevel=level)


def _is_own(name: str) -> bool:
    """Whether a frame is of this package, or of what its decorators run through."""
    return name.partition(".")[0] in ("surgery", "contextlib")
