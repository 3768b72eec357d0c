"""Roles that some layers of a stack have and others of it lack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from surgery.anatomy.site import Site

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy

EXPECTED = frozenset(("attention", "mlp", "q", "k", "v", "o", "up", "gate", "down"))
"""What a reader of a spec takes every layer to have."""


def lacking(anatomy: Anatomy, sites: Iterable[Site]) -> tuple[list[str], int]:
    """The layers without any of ``sites`` in stacks that have some, and how many these have."""
    found = anatomy.reading.sites.regions.layer_at
    having = {layer.path: layer.stack for s in sites if (layer := found(s.spans[0])) is not None}
    stacks = set(having.values())
    every = [s.path for s in anatomy.places.get("layer", ()) if anatomy.stack_of(s) in stacks]
    return [path for path in every if path not in having], len(every)
