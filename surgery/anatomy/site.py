"""Where a model can be changed: plain data, with nothing of the model in it but names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from surgery.anatomy.attention_core import AttentionCore
from surgery.rules.rows import Rows

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
class Experts:
    """How one parameter holds the weights of ``count`` experts, each a linear map.

    Each is [out, into], or [into, out] where ``transposed``.
    """

    count: int
    out: int
    into: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """How a module multiplies with a parameter of its own as with the weight of one linear map.

    It is [out, into], or [into, out] where ``transposed``, each of one dim or of several; ``states``
    are the dims of what it is multiplied with, features as one. ``bias`` names the parameter of the
    module that the same function adds.
    """

    out: int
    into: int
    transposed: bool
    states: int
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class States:
    """How the hidden states of a site lie, as far as the methods there ask for it.

    They have ``rank`` dims (None where nobody asked), of which the ``features`` stand last, or
    first behind the batch; those that are ``length_first`` come as [length, batch, features]. Where
    the site has them as rows, ``sequences`` is where they can be seen as [batch, length, features]; ``mask`` is
    where the mask can be seen that tells tokens from padding.
    """

    features: Literal["first", "last"] = "last"
    rank: int | None = None
    length_first: bool = False
    sequences: Port | None = None
    mask: Port | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A module, a region of several modules, a slice of a layer's outputs, or a parameter.

    ``entry`` and ``exit`` are where its hidden states pass; those of a slice are the layer's.
    ``residual`` is where the value can be seen that the site's output is added to; ``norm`` the
    module applied to just that sum (in post-norm models). ``members`` are the modules of a region.
    ``core`` is that of an attention, ``tokens`` those of a place in the role `tokens`. ``rows`` are
    the outputs that a slice consists of. ``packed`` is the weight of which these are rows where
    their module holds it for several layers, or that is one for all ``experts``, or that the module
    takes as a ``matrix``. ``states`` are those at its ports, which planning asks for.
    """

    path: str
    paths: tuple[str, ...]
    kind: Literal["module", "region", "slice", "experts", "matrix", "parameter"]
    role: str | None
    layer: int | None
    entry: Port
    exit: Port
    residual: Port | None = None
    norm: str | None = None
    members: tuple[str, ...] = ()
    core: AttentionCore | None = None
    tokens: Tokens | None = None
    rows: Rows | None = None
    packed: str | None = None
    experts: Experts | None = None
    matrix: Matrix | None = None
    states: States = States()

    @property
    def name(self) -> str:
        """What tells this site from others; the module that reads tokens may be one itself."""
        return f"{self.path}[tokens]" if self.tokens else self.path

    @property
    def whole(self) -> str:
        """The site whose program this is part of: of a slice, the layer or its packed weight."""
        return self.name if self.rows is None else self.name.removesuffix(f"[{self.rows}]")

    @property
    def owner(self) -> str:
        """The module that is changed here, and has the new parameters."""
        return self.path if self.kind in ("module", "parameter") else self.exit.path

    @property
    def owners(self) -> tuple[str, ...]:
        """Every path of the module that holds the weight which is changed here."""
        rows = f"[{self.rows}]" if self.rows else ""
        end = (self.packed or "") + rows
        if not end:
            return self.paths
        return tuple(path.removesuffix(end).removesuffix(".") for path in self.paths)

    @property
    def spans(self) -> tuple[str, ...]:
        """The modules or the parameter that the site consists of; of a slice, the whole layer."""
        if self.kind == "slice":
            return (self.exit.path,)
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


def slice_site(layer: Site, rows: Rows, role: str, packed: str | None = None) -> Site:
    """``rows`` of the outputs of ``layer``: `c_attn[q]`; of a packed weight, `in_proj_weight[q]`."""
    name = f".{packed}[{rows}]" if packed else f"[{rows}]"
    paths = tuple((path + name).lstrip(".") for path in layer.paths)
    path = (layer.path + name).lstrip(".")
    return replace(layer, path=path, paths=paths, kind="slice", role=role, rows=rows, packed=packed)


def experts_site(weight: Site, experts: Experts) -> Site:
    """The weights of all experts that the parameter ``weight`` holds: `experts.gate_up_proj`."""
    return replace(weight, kind="experts", experts=experts, packed=weight.path.rpartition(".")[2])


def matrix_site(weight: Site, matrix: Matrix) -> Site:
    """The linear map whose weight is the parameter ``weight``: `attention.q`."""
    return replace(weight, kind="matrix", matrix=matrix, packed=weight.path.rpartition(".")[2])


def site_elsewhere(site: Site, one: str, other: str) -> Site:
    """``site``, which lies in the module ``one``, as it stands in ``other``, a module just like it."""

    def within(path: str) -> bool:
        return path == one or path.startswith((f"{one}.", f"{one}["))

    def moved(path: str) -> str:
        return other + path[len(one) :] if within(path) else path

    def moved_port(port: Port) -> Port:
        return replace(port, path=moved(port.path))

    return replace(
        site,
        path=moved(site.path),
        paths=tuple(moved(path) for path in site.paths if within(path)),
        entry=moved_port(site.entry),
        exit=moved_port(site.exit),
        residual=moved_port(site.residual) if site.residual else None,
        norm=moved(site.norm) if site.norm else None,
        members=tuple(map(moved, site.members)),
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
