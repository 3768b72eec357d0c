"""`multi_head_attention_forward` with its core in sight of modes."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch.nn.functional as functional


def _none(_: Any) -> bool:
    return False


_given: Any = functional.multi_head_attention_forward
# Under a mode the function hands itself over as one, at once; this one never does.
opened = FunctionType(
    _given.__code__,
    {**_given.__globals__, "has_torch_function": _none},
    "opened",
    _given.__defaults__,
)
"""`multi_head_attention_forward`, all of whose functions modes are told of."""
