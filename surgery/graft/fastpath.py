"""PyTorch's own shortcuts around module calls, closed where they would pass a graft by.

In evaluation `nn.TransformerEncoderLayer` hands the weights of all its parts to one kernel; a
graft on a part would not run. `nn.MultiheadAttention` reads the weight of its `out_proj` and never
calls it: there the adapted class gives what is read (see graft/weights/effective.py).

`nn.TransformerEncoder` also leaves padding out on its shortcut, and gives zeros for it before its
last norm. So does an adapted one where the base would: what its last layer gives is zero there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import module_at

_KEPT = "_surgery_shortcut"
_SWITCHES: tuple[tuple[type[nn.Module], str, object], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def close(model: nn.Module, adapted: Iterable[str]) -> None:
    """Make the modules around ``adapted`` paths call their parts."""
    for path in _above(adapted):
        module = module_at(model, path)
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


def emptying(model: nn.Module, adapted: Iterable[str]) -> dict[str, bool]:
    """The layers whose results get zeros for padding once parts at ``adapted`` paths are called.

    With each, whether the shortcut is taken only where the padding is at the end.
    """
    found: dict[str, bool] = {}
    for path in _above(adapted):
        module = model.get_submodule(path)
        if not isinstance(module, nn.TransformerEncoder) or not module.use_nested_tensor:
            continue
        if len(module.layers):
            last = f"layers.{len(module.layers) - 1}"
            found[f"{path}.{last}" if path else last] = bool(module.mask_check)
    return found


def emptied(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor, checked: bool
) -> Tensor:
    """What an encoder's last layer gives, with zeros where the encoder's shortcut leaves them."""
    padding = kwargs.get("src_key_padding_mask")
    if padding is None or not args:
        return output
    if not _cut_short(layer, args[0], padding, kwargs.get("src_mask"), checked):
        return output
    return output.masked_fill((padding != 0).unsqueeze(-1), 0)


def _cut_short(
    layer: nn.Module, states: Tensor, padding: Tensor, mask: Tensor | None, checked: bool
) -> bool:
    """Whether `nn.TransformerEncoder` would take its shortcut, were its layers not adapted."""
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


def _above(paths: Iterable[str]) -> list[str]:
    """These modules and all around them."""
    return sorted({path[:i] for path in paths for i in _cuts(path)})


def _cuts(path: str) -> list[int]:
    return [0, *(i for i, c in enumerate(path) if c == "."), len(path)]
