"""Where the files that are not Python live, in a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(*parts: str) -> Path:
    """The path of `grammar/…` or `rules/…`: inside the package when installed, else beside it."""
    inside = _PACKAGE.joinpath("data", *parts)
    return inside if inside.exists() else _PACKAGE.parent.joinpath(*parts)
