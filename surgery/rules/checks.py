"""What a new parameter must be at a site: of a size, and of use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from surgery.language.diagnostics import Label, SurgeryError, error
from surgery.rules.acting import Lost
from surgery.rules.dims import Dim, Scalar
from surgery.rules.expression import walk
from surgery.rules.limits import at_site
from surgery.rules.shapes import show_shape
from surgery.rules.values import Declaration

_MOST_ELEMENTS = 2**42


def check_shape(declaration: Declaration, sizes: Mapping[str, Scalar]) -> None:
    declared = Label(declaration.span, f"declared {show_shape(declaration.shape)}")
    labels = (*declaration.origins, declared)
    shape = [at_site(d, sizes, *labels) for d in declaration.shape]
    name = declaration.name
    if any(not isinstance(d, int) or d < 1 for d in shape):
        raise error("S406", f"`{name}` would be {[*shape]} here", *labels)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise error("S406", f"`{name}` would be {[*shape]} here: no memory holds it", *labels)
    for _, value in declaration.init.arguments:
        if isinstance(value, Dim):
            at_site(value, sizes, *labels)
    start = declaration.init.value
    for e in walk(start) if start is not None else ():
        if e.number is not None:
            at_site(e.number, sizes, *labels)


def idle(declaration: Declaration, lost: Iterable[Lost]) -> SurgeryError:
    name = declaration.name.rpartition(".")[2]
    places = [x for x in lost if declaration.name in x.names and x.span is not None]
    labels = [Label(x.span, x.reason) for x in places[:1] if x.span]
    what = "does nothing" if declaration.frozen else "could never train"
    reason = places[0].reason if places else "nothing that it is part of is in the result"
    zero = any("its product" in x.reason for x in places)
    return error(
        "S225",
        f"`{name}` {what} here: {reason}",
        declaration.span,
        *labels,
        help="what is multiplied by 0 is off for good: leave it out instead" if zero else None,
    )
