"""What follows from a program and the sizes of a site; computed once for equal ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from surgery.rules.affine import NotAffine
from surgery.rules.program import Program

# Figures are for one position; what grows with a sequence cancels out.
_LEADING = {f"*{i}": 1 for i in range(8)} | {"*t": 1}

Taken = Literal["core", "norm", "residual"]


@dataclass(frozen=True)
class Derived:
    """What is derived of one method at a site, the last of a program.

    ``uses`` are the things beside the site's own input and result that it takes; ``flops`` those
    added for each position, before anything is folded. ``reason`` says why the rule does not merge,
    and ``obstacle`` why that cannot be written to the layer, if so. Of a method that ``folds``,
    networks compute constants.
    """

    formula: str = field(repr=False)
    identity: bool
    uses: tuple[Taken, ...]
    flops: int
    folds: bool
    reason: str | None
    obstacle: str | None = None

    @property
    def merges(self) -> bool:
        return self.unmerged is None

    @property
    def unmerged(self) -> str | None:
        """Why the method does not merge, if it does not."""
        return self.obstacle or self.reason


@lru_cache(maxsize=4096)
def derive(
    program: Program,
    before: Program,
    child: str,
    sizes: tuple[tuple[str, int], ...],
    one_hot: bool = False,
) -> Derived:
    """Hold a program against the sizes of a site.

    ``before`` is the program without its last method, whose params live under ``child``. A product
    with a ``one_hot`` input is a look-up, and costs nothing.

    Raises:
        SurgeryError: S404, S405 or S406 where the rule's demands are not met, S225 for a param that
            could never act here.

    """
    known = dict(sizes)
    program.check(known)
    program.check_acting(known)
    one = {**known, **_LEADING, **({"m": 0} if one_hot else {})}
    found = program.merge
    reason = None
    if isinstance(found, NotAffine):
        reason = f"{found.reason}{f' ({found.span})' if found.span else ''}"
    return Derived(
        "; ".join(map(str, program.changed)).replace(f"{child}.", ""),
        program.is_identity,
        _uses(program, before),
        int(program.flops.value(one) - before.flops.value(one)),
        program.folds(child),
        reason,
    )


def _uses(program: Program, before: Program) -> tuple[Taken, ...]:
    uses: dict[Taken, bool] = {
        "core": program.core != before.core,
        "norm": program.calls_norm,
        "residual": program.reads_residual,
    }
    return tuple(name for name, used in uses.items() if used)
