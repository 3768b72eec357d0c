"""What a forward depends on beside its model: defaults, modes, and hooks of all modules."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as global_hooks

from surgery.anatomy.notes import UnseenError, WalkNotes

_MODULE_HOOKS = tuple(name for name in vars(global_hooks) if name.startswith("_global_"))


def surroundings(notes: WalkNotes) -> None:
    """Note what all forwards are run in.

    Raises:
        UnseenError: inside of modes and transforms, which change what operators do.

    """
    untyped: Any = torch._C
    if untyped._len_torch_dispatch_stack() or untyped._len_torch_function_stack():
        raise UnseenError
    if untyped._functorch.peek_interpreter_stack() is not None:
        raise UnseenError
    notes.tokens += (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )
    for device in ("cpu", "cuda"):
        notes.tokens.append(torch.is_autocast_enabled(device))
        notes.tokens.append(torch.get_autocast_dtype(device))
    for name in _MODULE_HOOKS:
        notes.thing(getattr(global_hooks, name))
