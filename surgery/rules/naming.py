"""Names that no parameter and no child of a module can have."""

from __future__ import annotations

import keyword

from surgery.language.diagnostics import error
from surgery.language.source import Span


def check_name(name: str, span: Span) -> None:
    """Whether a module can have a parameter or a child called ``name``.

    Raises:
        SurgeryError: S244 for a word of Python, which code cannot have after a dot, and for names
            that start with `_` or `surgery_`, which are those of what modules keep for themselves.

    """
    if keyword.iskeyword(name):
        why = "it is a word of Python"
    elif name.startswith(("_", "surgery_")):
        why = "names that start with `_` or `surgery_` are what modules keep for themselves"
    else:
        return
    plain = name.strip("_").removeprefix("surgery_")
    help = f"choose another, such as `{plain}_`" if plain else None
    raise error("S244", f"no parameter and no child can be named `{name}`: {why}", span, help=help)


def clash(one: str, other: str) -> bool:
    """Whether no module can have both: they are one, or one stands within the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
