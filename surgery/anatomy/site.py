"""Where a model can be changed: plain data, with nothing of the model in it but names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from surgery.anatomy.attention_core import AttentionCore
from surgery.layers.kind import Layer
from surgery.rules.rows import Rows
from surgery.rules.signature import Signature

ROLES = (
    "attention",
    "attention.self",
    "attention.cross",
    "q",
    "k",
    "v",
    "o",
    "qkv",
    "qk",
    "kv",
    "mlp",
    "up",
    "gate",
    "down",
    "gate_up",
    "linear",
    "layer",
    "tokens",
    "embedding",
    "norm",
    "head",
    "router",
    "expert",
    "experts",
    "bias",
    "weight",
)
"""Every role a selector may name. `qkv`, `qk`, `kv` and `gate_up` are linears that serve several;
`linear` is every module that does nothing but multiply with a weight, whatever its class."""


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
class Memory:
    """How a decoder attends to the states of an encoder's tokens.

    The module at ``reader`` is given them as ``states`` and, as ``mask``, which of them are no
    padding. The one at ``around`` runs both stacks, and hands the encoder's states out beside.
    ``index`` is where they stand in what the encoder's reader returns. Where the reader makes
    something else of the states, too, as a pooler does, those that it returns stand ``apart``: they
    are the very ones that leave its last layer.
    """

    around: str
    reader: str
    states: str
    mask: str | None = None
    index: int | str | None = None
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """How a stack of layers gets its tokens, and where their hidden states leave it.

    The module at ``reader`` is given token ids, has them embedded by the module at ``embedding``,
    and runs the layers; ``exit`` is where the hidden states of all tokens come out of the last of
    them, before any of them is picked or pooled; or out of the reader, where that reshapes them by
    their number or picks by the ids; or None where states of the model's own attend to the tokens,
    and only these come out. ``ids``, ``embeds``, ``mask``, ``positions``, ``types`` and
    ``cache`` name the arguments of the reader's ``forward``, those it has.

    ``mask`` is [batch, length], with zeros for padding. Positions that are not given the reader
    counts by ``counts``: by the places in the sequence from 0, by running sums of the mask from 0,
    or by running sums over the ids that are not ``padding``, from behind that number. Embeddings
    that are ``length_first`` are [length, batch, features]. ``causal`` names the argument that
    tells of each token which others it sees, [length, length]. What the reader returns at a key in
    ``streams`` are as many sequences of states, [batch, many · length, features]. ``memory`` tells
    who attends to the states that the reader returns, where nothing else is made of them.
    """

    reader: str
    embedding: str
    exit: Port | None
    ids: str
    embeds: str | None = None
    mask: str | None = None
    positions: str | None = None
    types: str | None = None
    cache: str | None = None
    counts: Literal["places", "mask", "ids"] = "places"
    padding: int | None = None
    length_first: bool = False
    causal: str | None = None
    streams: tuple[tuple[int | str | None, int], ...] = ()
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class WholeModule:
    """A module, whatever it computes; of one that attends, with its ``core``."""

    core: AttentionCore | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """What several modules compute, its ``members``; of one that attends, with its ``core``."""

    members: tuple[str, ...]
    core: AttentionCore | None = None


@dataclass(frozen=True, slots=True)
class LinearMap:
    """A linear map: a layer, or a weight that a module or its experts multiply with.

    Of a slice, ``rows`` are the outputs of the layer that it consists of.
    """

    layer: Layer
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """Some ``rows`` of a layer's outputs, until the layer is read: then it is a `LinearMap`.

    ``packed`` is the weight of which they are rows, where their module holds it for several layers.
    """

    rows: Rows
    packed: str | None = None


@dataclass(frozen=True, slots=True)
class BareParameter:
    """A parameter, of which it is not asked what its module does with it."""


Operator = WholeModule | Region | LinearMap | OutputSlice | Tokens | BareParameter
"""What is found at a site, and all that is known of it beside where it is."""


@dataclass(frozen=True, slots=True)
class States:
    """How the hidden states of a site lie, as far as the methods there ask for it.

    They have ``rank`` dims (None where nobody asked), of which the ``features`` stand last, or
    first behind the batch; those that are ``length_first`` come as [length, batch, features]. Where
    the site has them as rows, ``sequences`` is where they can be seen as [batch, length, features];
    ``mask`` is where the mask can be seen that tells tokens from padding.
    """

    features: Literal["first", "last"] = "last"
    rank: int | None = None
    length_first: bool = False
    sequences: Port | None = None
    mask: Port | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """Where a model can be changed, and the ``operator`` that is found there.

    ``entry`` and ``exit`` are where its hidden states pass; those of a slice are the layer's.
    ``residual`` is where the value can be seen that the site's output is added to; ``norm`` the
    module applied to just that sum (in post-norm models). ``index`` is the number of the layer of
    the model that it is in. ``states`` are those at its ports, which planning asks for.
    """

    path: str
    paths: tuple[str, ...]
    operator: Operator
    role: str | None
    index: int | None
    entry: Port
    exit: Port
    residual: Port | None = None
    norm: str | None = None
    states: States = States()

    @property
    def name(self) -> str:
        """What tells this site from others; the module that reads tokens may be one itself."""
        return f"{self.path}[tokens]" if isinstance(self.operator, Tokens) else self.path

    @property
    def whole(self) -> str:
        """The site whose program this is part of: of a slice, the layer or its packed weight."""
        return self.name if self.rows is None else self.name.removesuffix(f"[{self.rows}]")

    @property
    def owner(self) -> str:
        """The module that is changed here, and has the new parameters."""
        return self.path if isinstance(self.operator, Tokens) else self.exit.path

    @property
    def spans(self) -> tuple[str, ...]:
        """The modules or the parameter that the site consists of; of a slice, the whole layer."""
        if isinstance(self.operator, Region):
            return self.operator.members
        return (self.path if self.rows is None else self.exit.path,)

    @property
    def is_part(self) -> bool:
        """Whether it is no module and no parameter that has a name in the model."""
        return isinstance(self.operator, Region | OutputSlice)

    @property
    def rows(self) -> Rows | None:
        """The outputs of a layer that a slice is; None where it is no slice."""
        match self.operator:
            case OutputSlice(rows) | LinearMap(_, rows):
                return rows
            case _:
                return None

    @property
    def layer(self) -> Layer | None:
        """The site as a linear layer, if it was read as one."""
        return self.operator.layer if isinstance(self.operator, LinearMap) else None

    @property
    def core(self) -> AttentionCore | None:
        """That of an attention."""
        match self.operator:
            case WholeModule(core) | Region(_, core):
                return core
            case _:
                return None

    def attending(self, core: AttentionCore) -> Site:
        """The site as that of an attention with this ``core``."""
        assert isinstance(self.operator, WholeModule | Region)
        return replace(self, operator=replace(self.operator, core=core))

    @property
    def signature(self) -> Signature:
        """What of the site decides how methods expand there."""
        match self.operator:
            case Tokens(positions=positions, memory=memory):
                given, told = positions is not None, memory is not None
                return Signature("tokens", positions=given, memory=told)
            case LinearMap(layer):
                return Signature("linear", bias=layer.bias, grouped=layer.groups > 1)
            case _:
                known = (self.norm, self.residual, self.core)
                norm, residual, core = (value is not None for value in known)
                return Signature("module", norm=norm, residual=residual, core=core)


def module_site(path: str, paths: tuple[str, ...] = ()) -> Site:
    """A module of which no more than its name is known."""
    entry, exit = Port(path, "input"), Port(path, "output")
    return Site(path, paths or (path,), WholeModule(), None, None, entry, exit)


def parameter_site(path: str, paths: tuple[str, ...] = ()) -> Site:
    """A parameter; its ports are those of the module that owns it."""
    owner = module_site(path.rpartition(".")[0])
    return replace(owner, path=path, paths=paths or (path,), operator=BareParameter())


def slice_site(layer: Site, rows: Rows, role: str, packed: str | None = None) -> Site:
    """``rows`` of the outputs of ``layer``: `c_attn[q]`; of a packed weight, `in_proj_weight[q]`."""
    name = f".{packed}[{rows}]" if packed else f"[{rows}]"
    paths = tuple((path + name).lstrip(".") for path in layer.paths)
    path = (layer.path + name).lstrip(".")
    return replace(layer, path=path, paths=paths, operator=OutputSlice(rows, packed), role=role)


def covers(place: str, path: str) -> bool:
    """Whether ``path`` is ``place`` or lies below it; the root covers everything."""
    return not place or path == place or path.startswith(place + ".")
