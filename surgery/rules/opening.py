"""Starts of which algebra cannot tell whether they are the identity."""

from __future__ import annotations

from surgery.rules.program import Program


def start_is_open(program: Program) -> bool:
    """Whether a param starts as a copy of a drawn one, and algebra does not see the identity.

    HRA's reflectors come in equal pairs, which undo each other: numbers show it.
    """
    drawn = {d.name for d in program.params if d.init.value is None}
    copied = (leaf.name for d in program.params if d.init.value for leaf in d.init.value.leaves)
    return not program.is_identity and any(name in drawn for name in copied)
