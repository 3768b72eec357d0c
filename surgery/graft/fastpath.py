"""PyTorch's own shortcuts around module calls, closed where they would pass a graft by.

In evaluation `nn.TransformerEncoderLayer` hands the weights of all its parts to one kernel; a
graft on a part would not run. `nn.MultiheadAttention` reads the weight of its `out_proj` and never
calls it: there the adapted class gives what is read (see graft/weights/effective.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_KEPT = "_surgery_shortcut"
_SWITCHES: tuple[tuple[type[nn.Module], str, object], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def close(model: nn.Module, adapted: Iterable[str]) -> None:
    """Make the modules around ``adapted`` paths call their parts."""
    above = {path[:i] for path in adapted for i in _cuts(path)}
    for path in sorted(above):
        module = model.get_submodule(path)
        for cls, name, value in _SWITCHES:
            if isinstance(module, cls) and hasattr(module, name) and _KEPT not in module.__dict__:
                module.__dict__[_KEPT] = (name, getattr(module, name))
                setattr(module, name, value)


def reopen(model: nn.Module) -> None:
    """Undo :func:`close`."""
    for module in model.modules():
        kept = module.__dict__.pop(_KEPT, None)
        if kept is not None:
            setattr(module, *kept)


def _cuts(path: str) -> list[int]:
    return [0, *(i for i, c in enumerate(path) if c == "."), len(path)]
