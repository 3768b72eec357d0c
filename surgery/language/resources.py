"""Texts in files, and where those of the package live, in a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(*parts: str) -> Path:
    """The path of `grammar/…` or `rules/…`: inside the package when installed, else beside it."""
    inside = _PACKAGE.joinpath("data", *parts)
    return inside if inside.exists() else _PACKAGE.parent.joinpath(*parts)


class NoTextError(Exception):
    """A file that cannot be read; its message is the reason."""


def read_text(path: Path) -> str:
    """The text of a file, with its line ends as they are.

    Raises:
        NoTextError: if it cannot be read, or is no UTF-8.

    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise NoTextError(problem.strerror or str(problem)) from None
    except ValueError as problem:  # a NUL in the path
        raise NoTextError(str(problem)) from None
    return decoded(data)


def decoded(data: bytes) -> str:
    """The text that ``data`` is.

    Raises:
        NoTextError: if it is no UTF-8.

    """
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise NoTextError(f"it is no text in UTF-8, see byte {problem.start}") from None
