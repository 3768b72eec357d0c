"""Whether the module that runs a function of an exported program was a layer, by its class's name.

What multiplies with a weight need not be a layer (Mixtral: a router has a weight of its own, and
chooses experts with the result). A program has no more of a class than its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import cast

import torch.nn.functional as functional
from torch import Tensor, fx, nn

from surgery.layers import LINEAR, kinds
from surgery.layers.kind import holding

_LIBRARY = ("torch", "nn", "modules")


def runs_layer(node: fx.Node, cls: str | None) -> bool:
    """Whether ``node`` is the forward of a layer, in a module whose class has the name ``cls``.

    A class that this process has tells by its bases. Otherwise a layer is what the code of PyTorch's
    own layers ran; what keeps no code, or was in no module that ran, is one.
    """
    names = {name for kind in kinds() if node.target in kind.exported for name in kind.class_names}
    if cls is None or cls in names:
        return True
    bases = _bases(cls)
    if bases:
        return not names.isdisjoint(bases)
    code = node.meta.get("stack_trace") or ""
    files = [line.split('"')[1] for line in code.splitlines() if line.startswith('  File "')]
    return not files or PurePath(files[-1]).parts[-4:-1] == _LIBRARY


def alike(path: str, cls: str | None, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module of no layer's class which does what `nn.Linear` does."""
    name = (cls or "Module").rpartition(".")[2]
    made: nn.Module = type(name, (nn.Module,), {"forward": _linear})()
    for part in ("weight", "bias"):
        made.register_parameter(part, cast("nn.Parameter | None", tensors.get(f"{path}.{part}")))
    return made


def _linear(self: nn.Module, x: Tensor) -> Tensor:
    return functional.linear(x, self.get_parameter("weight"), self._parameters["bias"])


def unread(path: str, cls: str, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The linear layer at ``path`` whose weight no layer's function reads, so that specs find it.

    Falcon: its linear layers multiply with the transposed weight. What is applied there is refused.
    """
    weight, bias = (tensors.get(f"{path}.{name}") for name in ("weight", "bias"))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        return None
    if LINEAR.class_names.isdisjoint((cls, *_bases(cls))):
        return None
    made = nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta")
    return holding(made, weight, cast("nn.Parameter | None", bias))


def _bases(cls: str) -> list[str]:
    """The names of the class ``cls`` and of its bases, if this process has it."""
    found = next((c for c in _below(nn.Module) if _name(c) == cls), None)
    return [] if found is None else [_name(base) for base in found.__mro__]


def _below(cls: type) -> Iterator[type]:
    for one in cls.__subclasses__():
        yield one
        yield from _below(one)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
