"""What the scores of an attention may go through between their product and the product with values.

Told by the names of functions, as :func:`~surgery.anatomy.roles.operators.kind` gives them. Beside
a model's own keys new ones can be scored where every step is one of these.
"""

from __future__ import annotations

from surgery.anatomy.roles.operators import PRODUCTS


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SCORED = PRODUCTS - _names("addmm addbmm tensordot mv")
"""Products that score keys, or weigh values."""

ALIKE = _names("""
    to type type_as float half bfloat16 double contiguous clone tanh clamp clamp_min clamp_max
    dropout identity neg relu sigmoid softplus nan_to_num
    """)
"""Every score alike, whichever key it is of."""

SCALED = _names("mul div")
"""Every score alike if the other operand has one number for all keys, else each key its own."""

JOINED = _names("add sub where masked_fill maximum minimum max min baddbmm cat concatenate")
"""Each key its own: masks, position biases, sinks. Alike if the other operand is a number."""

VIEWS = _names("view reshape flatten unflatten view_as reshape_as unsqueeze squeeze")
"""The same scores; the keys stay on the last axis."""

MOVES = _names("transpose permute")
"""The same scores; taken as steps where the last axis stays."""

STEPS = ALIKE | SCALED | JOINED | VIEWS | MOVES | {"getitem"}
