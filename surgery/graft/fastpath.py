"""PyTorch's own shortcuts around module calls, closed where they would pass a graft by.

In evaluation `nn.TransformerEncoderLayer` hands the weights of all its parts to one kernel; a
graft on a part would not run. `nn.MultiheadAttention` reads the weight of its `out_proj` and never
calls it: there the adapted class gives what is read (see graft/weights/effective.py).

`nn.TransformerEncoder` also leaves padding out on its shortcut, and gives zeros for it before its
last norm. So does an adapted one where the base would: what its last layer gives is zero there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import module_at

_KEPT = "_surgery_shortcut"
_PADDING = "_surgery_padding"
_SWITCHES: tuple[tuple[type[nn.Module], str, object], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def close(model: nn.Module, adapted: Iterable[str]) -> None:
    """Make the modules around ``adapted`` paths call their parts."""
    above = {path[:i] for path in adapted for i in _cuts(path)}
    for path in sorted(above):
        module = module_at(model, path)
        if isinstance(module, nn.TransformerEncoder) and _KEPT not in module.__dict__:
            _empty_padding(module)
        for cls, name, value in _SWITCHES:
            if isinstance(module, cls) and hasattr(module, name) and _KEPT not in module.__dict__:
                module.__dict__[_KEPT] = (name, getattr(module, name))
                setattr(module, name, value)


def reopen(modules: Iterable[nn.Module]) -> None:
    """Undo :func:`close` where it was done to any of ``modules``."""
    for module in modules:
        kept = module.__dict__.pop(_KEPT, None)
        if kept is not None:
            setattr(module, *kept)
        if module.__dict__.pop(_PADDING, None) is not None:
            hooks = cast("dict[int, Any]", module._forward_hooks)  # pyright: ignore[reportUnknownMemberType]
            for key in [key for key, hook in hooks.items() if hook is _without_padding]:
                del hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)


def _empty_padding(encoder: nn.TransformerEncoder) -> None:
    if getattr(encoder, "use_nested_tensor", False) and len(encoder.layers):
        last = encoder.layers[-1]
        last.__dict__[_PADDING] = bool(getattr(encoder, "mask_check", True))
        last.register_forward_hook(_without_padding, prepend=True, with_kwargs=True)


def _without_padding(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """What an encoder's last layer gives, with zeros where its shortcut would leave them."""
    padding = kwargs.get("src_key_padding_mask")
    states: Tensor = args[0]
    if padding is None or not _cut_short(layer, states, padding, kwargs.get("src_mask")):
        return output
    return output.masked_fill((padding != 0).unsqueeze(-1), 0)


def _cut_short(layer: nn.Module, states: Tensor, padding: Tensor, mask: Tensor | None) -> bool:
    """Whether `nn.TransformerEncoder` would take its shortcut, were its layers not adapted."""
    checked = layer.__dict__[_PADDING]
    refused = (
        not torch.backends.mha.get_fastpath_enabled()
        or layer.training
        or states.dim() != 3
        or mask is not None
        or torch.is_autocast_enabled()
        or (checked and torch.compiler.is_compiling())
    )
    if refused:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (states, *layer.parameters())):
        return False
    functions: Any = torch
    return not checked or bool(
        functions._nested_tensor_from_mask_left_aligned(states, padding == 0)
    )


def _cuts(path: str) -> list[int]:
    return [0, *(i for i, c in enumerate(path) if c == "."), len(path)]
