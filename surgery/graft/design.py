"""What becomes of one module's class, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import fx

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.site import Port, Region, Site, Tokens, WholeModule
from surgery.graft.attention.rerouting import CoreChange
from surgery.layers import Layer
from surgery.rules.dims import Scalar
from surgery.rules.program import Program


@dataclass(frozen=True)
class Part:
    """A program to run at a module, and its ``site`` without where in the model that is.

    ``slots`` name the attributes of the module from which is read what comes from elsewhere: `x`
    (of a region), `residual`, the mask of `real` tokens, `sequences`, and the `norm` module.
    """

    program: Program
    site: Site
    sizes: tuple[tuple[str, Scalar], ...]
    slots: tuple[tuple[str, str], ...] = ()

    @property
    def own(self) -> bool:
        """Whether it reads the module's own input; others are of regions that end, or run, here."""
        return not isinstance(self.site.operator, Region)

    @property
    def layer(self) -> Layer | None:
        """The site as a linear layer, if it is one."""
        return self.site.layer


def path_free(site: Site, core: AttentionCore | None = None) -> Site:
    """``site`` as it is at every module that is changed like it; ``core`` is changed there.

    The core alone keeps its path, by which errors name it.
    """
    match site.operator:
        case Region():
            operator = Region((), core)
        case WholeModule():
            operator = WholeModule(core)
        case Tokens() as tokens:
            operator = replace(tokens, reader="", embedding="", exit=None, memory=None)
        case operator:
            pass
    entry, exit = (replace(port, path="") for port in (site.entry, site.exit))
    states = replace(site.states, sequences=None, mask=None)
    return Site("", (), operator, None, None, entry, exit, states=states)


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

    ``parts`` are what the forward runs, ``cores`` those that change an attention while it does, and
    ``read`` those of which other code reads the weight.
    ``writes`` name slots, with the ports whose values go there, and ``opens`` those that are open
    while the module runs. Where it ``empties`` places of padding, that says whether the padding
    is looked at first (see graft/fastpath.py).
    """

    parts: tuple[Part, ...] = ()
    cores: tuple[Part, ...] = ()
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
