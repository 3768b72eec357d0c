"""What follows from a program and the sizes of a site; computed once for equal ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from surgery.language.syntax import Sharing
from surgery.rules.affine import NotAffine
from surgery.rules.dims import Dim
from surgery.rules.program import Program

# Figures are for one position; what grows with a sequence cancels out.
_LEADING = {f"*{i}": 1 for i in range(8)} | {"*t": 1}


@dataclass(frozen=True)
class Added:
    """A parameter of a program at concrete sizes; its name is relative to the module."""

    name: str
    shape: tuple[int, ...]
    init: str
    trained: bool
    shared: Sharing | None


@dataclass(frozen=True)
class Derived:
    """The plan's figures for one method, the last of a program."""

    formula: str
    tensors: tuple[Added, ...]
    flops: int
    folds: bool
    reason: str | None


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
    tensors = tuple(
        Added(d.name, tuple(_size(s, known) for s in d.shape), str(d.init), not d.frozen, d.shared)
        for d in dict(program.declarations)[child]
    )
    one = {**known, **_LEADING, **({"m": 0} if one_hot else {})}
    found = program.merge
    reason = None
    if isinstance(found, NotAffine):
        reason = f"{found.reason}{f' ({found.span})' if found.span else ''}"
    return Derived(
        "; ".join(map(str, program.changed)).replace(f"{child}.", ""),
        tensors,
        int(program.flops.value(one) - before.flops.value(one)),
        program.folds(child),
        reason,
    )


def _size(dim: Dim, sizes: dict[str, int]) -> int:
    return int(dim.value(sizes))
