"""What becomes of one module's class, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import fx

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.site import Port
from surgery.graft.attention.rerouting import CoreChange
from surgery.layers import Layer
from surgery.rules.dims import Scalar
from surgery.rules.program import Program


@dataclass(frozen=True)
class Part:
    """A program to run at a module: its result, or what it makes of an attention's ``core``.

    ``own`` programs read the module's input; the others are of regions that end here, or whose
    core runs here. ``slots`` name the module attributes from which `x` (of a region), `residual`
    and the mask of `real` tokens are read, and ``held`` the one that holds the norm module. Where
    states are ``length_first``, they come as [length, batch, features].
    """

    program: Program
    layer: Layer | None
    sizes: tuple[tuple[str, Scalar], ...]
    features: str
    rank: int | None
    own: bool
    entry: Port
    exit: Port
    slots: tuple[tuple[str, str], ...] = ()
    held: str | None = None
    core: AttentionCore | None = None
    gives_result: bool = True
    length_first: bool = False


StackRole = Literal["reader", "embedding", "exit", "decoder", "around"]


@dataclass(frozen=True)
class StackPart:
    """A module's part in what becomes of a stack's tokens; ``shared`` names what its parts share.

    ``port`` is where the module has the states that are changed. The reader runs the ``program``.
    The embedding and the exit find in the shared slots what concerns them; ``places`` are the ids
    that vectors replace. Where a decoder attends to the states, it has a part as ``decoder``, and
    the module around as ``around``.
    """

    role: StackRole
    shared: str
    port: Port
    program: Part | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Design:
    """All that decides a generated class: modules with equal designs share one.

    ``parts`` are what the forward runs, ``read`` those of which other code reads the weight.
    ``writes`` name slots, with the ports whose values go there, and ``opens`` those that are open
    while the module runs. Where it ``empties`` places of padding, that says whether the padding
    is looked at first (see graft/fastpath.py).
    """

    parts: tuple[Part, ...] = ()
    writes: tuple[tuple[str, Port], ...] = ()
    stacks: tuple[StackPart, ...] = ()
    read: tuple[Part, ...] = ()
    opens: tuple[str, ...] = ()
    empties: bool | None = None


@dataclass
class Built:
    graph: fx.Graph
    functions: dict[str, fx.Graph] = field(default_factory=dict[str, fx.Graph])
    cores: list[CoreChange] = field(default_factory=list[CoreChange])
