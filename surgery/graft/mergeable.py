"""Which methods of a site can go into its weight if not all of them can."""

from __future__ import annotations

from surgery.graft.sites import SiteMethods, program_of
from surgery.language.diagnostics import SurgeryError
from surgery.planning.edit import Edit
from surgery.rules.affine import Merge
from surgery.rules.expand import Wrapped
from surgery.rules.expression import is_number
from surgery.rules.program import Program
from surgery.rules.simplify import same_value


def mergeable(site: SiteMethods) -> list[Wrapped]:
    """The methods of a site that can go into its weight, the others staying as they are.

    Those that merge by themselves may go first if the site then still computes the same; else
    those in front of the first that does not merge.
    """
    edit, wraps = site.edits[0], site.wraps
    whole = site.program
    if isinstance(whole.merge, Merge):
        return wraps
    alone = [w for w in wraps if _merges_apart(edit, [w])]
    others = [w for w in wraps if w not in alone]
    reordered = _program(edit, [*alone, *others]) if _merges_apart(edit, alone) else None
    if reordered and same_value(reordered.result, whole.result) and _program(edit, others):
        return alone
    for length in range(len(wraps) - 1, 0, -1):
        # What stays has a weight and a bias before it then, and no longer what these were made of.
        if _merges_apart(edit, wraps[:length]) and _program(edit, wraps[length:]):
            return wraps[:length]
    return []


def _program(edit: Edit, wraps: list[Wrapped]) -> Program | None:
    """The program of some of a site's methods, which may need the others before them."""
    try:
        return program_of(edit, wraps)
    except SurgeryError:
        return None


def _merges_apart(edit: Edit, wraps: list[Wrapped]) -> bool:
    """Whether these methods merge to what is still a weight and a bias to those that stay.

    An embedding has no bias: what would be one is added to its rows, and so to the weight.
    """
    program = _program(edit, wraps) if wraps else None
    found = program and program.merge
    embedding = edit.layer is not None and edit.layer.kind.one_hot
    return isinstance(found, Merge) and not (embedding and not is_number(found.bias, 0))
