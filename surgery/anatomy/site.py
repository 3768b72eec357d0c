"""Where a model can be changed: plain data, with nothing of the model in it but names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROLES = (
    "attention",
    "attention.self",
    "attention.cross",
    "q",
    "k",
    "v",
    "o",
    "qkv",
    "kv",
    "mlp",
    "up",
    "gate",
    "down",
    "gate_up",
    "layer",
    "embedding",
    "norm",
    "head",
    "router",
    "expert",
    "experts",
    "bias",
    "weight",
)
"""Every role a selector may name. `qkv`, `kv` and `gate_up` are linears that serve several."""


@dataclass(frozen=True, slots=True)
class Port:
    """One value that passes the border of a called module.

    ``argument`` is the parameter of the module's ``forward`` that carries it (None for outputs, or
    where nothing was recorded); ``index`` its position in a tuple, its key in a mapping, or None
    if the output is the tensor itself.
    """

    path: str
    side: Literal["input", "output"]
    argument: str | None = None
    index: int | str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A module, a region of several modules, or a parameter, and where its hidden states pass.

    ``residual`` is where the value can be seen that the site's output is added to; ``norm`` the
    module applied to just that sum (in post-norm models). ``members`` are the modules of a region.
    """

    path: str
    paths: tuple[str, ...]
    kind: Literal["module", "region", "parameter"]
    role: str | None
    layer: int | None
    entry: Port
    exit: Port
    residual: Port | None = None
    norm: str | None = None
    members: tuple[str, ...] = ()

    @property
    def spans(self) -> tuple[str, ...]:
        """The modules or the parameter that the site consists of."""
        return self.members if self.kind == "region" else (self.path,)


def module_site(path: str, paths: tuple[str, ...] = ()) -> Site:
    """A module of which no more than its name is known."""
    return Site(
        path, paths or (path,), "module", None, None, Port(path, "input"), Port(path, "output")
    )


def parameter_site(path: str, paths: tuple[str, ...] = ()) -> Site:
    """A parameter; its ports are those of the module that owns it."""
    owner = path.rpartition(".")[0]
    return Site(
        path, paths or (path,), "parameter", None, None, Port(owner, "input"), Port(owner, "output")
    )


def covers(place: str, path: str) -> bool:
    """Whether ``path`` is ``place`` or lies below it; the root covers everything."""
    return not place or path == place or path.startswith(place + ".")


def region_path(members: tuple[str, ...], first: str, last: str) -> str:
    """`encoder.layer.0[intermediate.dense..output.dense]`: the common parent, then both ends."""
    parts = [member.split(".") for member in members] or [[first], [last]]
    shared = 0
    shortest = min(len(part) - 1 for part in parts)
    while shared < shortest and len({part[shared] for part in parts}) == 1:
        shared += 1
    parent = ".".join(parts[0][:shared])
    start = len(parent) + 1 if parent else 0
    return f"{parent}[{first[start:]}..{last[start:]}]"
