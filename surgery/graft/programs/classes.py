"""Whether the module that runs a function of an exported program was a layer, by its class's name.

What multiplies with a weight need not be a layer (Mixtral: a router has a weight of its own, and
chooses experts with the result). A program has no more of a class than its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from torch import fx, nn

from surgery.layers import kinds

_LIBRARY = ("torch", "nn", "modules")


def runs_layer(node: fx.Node, cls: str | None) -> bool:
    """Whether ``node`` is the forward of a layer, in a module whose class has the name ``cls``.

    A class that this process has tells by its bases. Otherwise a layer is what the code of PyTorch's
    own layers ran; what keeps no code, or was in no module that ran, is one.
    """
    names = {name for kind in kinds() if node.target in kind.exported for name in kind.class_names}
    if cls is None or cls in names:
        return True
    found = next((c for c in _below(nn.Module) if _name(c) == cls), None)
    if found is not None:
        return any(_name(base) in names for base in found.__mro__)
    code = node.meta.get("stack_trace") or ""
    files = [line.split('"')[1] for line in code.splitlines() if line.startswith('  File "')]
    return not files or PurePath(files[-1]).parts[-4:-1] == _LIBRARY


def _below(cls: type) -> Iterator[type]:
    for one in cls.__subclasses__():
        yield one
        yield from _below(one)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
