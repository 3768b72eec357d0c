"""Small models, what may be applied to them, and what is known of one while things are done to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

MERGED, DISABLED = "merged", "disabled"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Block(nn.Module):
    """A transformer of one layer, its head tied to its embedding, and a parameter of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.shift = nn.Parameter(torch.arange(8), requires_grad=False)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.layer(self.embedding(ids)))
        return self.head(x + (self.shift / 8).to(x.dtype))


class Shared(nn.Module):
    """Two biases in one memory, one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.third = nn.Linear(4, 4)
        self.third.bias = nn.Parameter(self.first.bias.data[:])
        self.again = self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.again(torch.tanh(self.second(torch.tanh(self.first(x))))))


def _sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.LayerNorm(4))


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.Tanh(), nn.Conv1d(4, 2, 1))


@dataclass(frozen=True)
class Kind:
    """A model, an input for it, and specs that fit it: `{}` is a name for what they graft."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    specs: tuple[str, ...]
    ids: bool = False

    def input(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        if self.ids:
            return torch.randint(7, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator).to(dtype)


GRAFTS = ("on Linear apply lora(2) as {}", "on Linear apply ia3 as {}")
TRAINS = ("train bias", "train norm", "train all", "freeze bias")
KINDS = {
    "sequential": Kind(
        _sequential,
        (3, 4),
        (
            *GRAFTS,
            *TRAINS,
            "on `0` apply dora(2) as {} train bias",
            "on `2` apply shift as {} freeze `0`",
            "on `2` sequential adapter(2) as {} train norm",
            "on Linear apply vera(2) as {} train `0.bias`",
        ),
    ),
    "shared": Kind(
        Shared,
        (3, 4),
        (*GRAFTS, "train bias", "train `third.bias`", "on `first` apply shift as {} train all"),
    ),
    "convolutions": Kind(
        _convolutions,
        (2, 4, 5),
        (
            "on Conv1d apply lora(1) as {} train bias",
            "on Conv1d apply ia3 as {}",
            "train bias",
            "on `2` sequential adapter(2) as {}",
        ),
    ),
    "block": Kind(
        Block,
        (2, 5),
        (
            "on up|down apply lora(2) as {} train norm",
            "on attention apply prefix_mlp(2, m = 3) as {}",
            "on mlp parallel adapter(3) as {}",
            "on q|v apply lora(2) as {} train embedding",
            "train norm",
            "train bias",
        ),
        ids=True,
    ),
}

State = tuple[dict[str, Tensor], dict[str, type], dict[str, bool], dict[str, frozenset[str]]]


def state_of(model: nn.Module) -> State:
    """All there is of a model: tensors in order, classes, flags, the names of attributes."""
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    modules = dict(model.named_modules())
    return (
        tensors,
        {n: type(m) for n, m in modules.items()},
        {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)},
        # What an adapted layer keeps between two forwards may be there or not.
        {n: frozenset(m.__dict__) - {"_surgery_kept"} for n, m in modules.items()},
    )


def difference(one: State, other: State) -> str:
    """In words, how two states differ; nothing if they don't."""
    if list(one[0]) != list(other[0]):
        return f"names: {list(one[0])} and {list(other[0])}"
    for name, tensor in one[0].items():
        if tensor.dtype != other[0][name].dtype:
            return f"{name} is {tensor.dtype} and {other[0][name].dtype}"
        if not torch.equal(tensor, other[0][name]):
            return f"{name} differs"
    for what, left, right in zip(("class", "flag", "attributes"), one[1:], other[1:], strict=True):
        for name in {**left, **right}:
            if left.get(name) != right.get(name):
                return f"{what} of {name}: {left.get(name)} and {right.get(name)}"
    return ""


def same(one: State, other: State, why: str) -> None:
    found = difference(one, other)
    assert not found, f"{why}: {found}"


@dataclass
class Standing:
    """A spec in force: under which name its grafts go (None if it has none), and its seed."""

    text: str
    name: str | None
    seed: int


@dataclass
class Life:
    """A model, with a twin to which nothing but casts was done: what the base must be."""

    kind: Kind
    model: nn.Module
    twin: nn.Module
    stack: list[Standing] = field(default_factory=list)
    open: list[tuple[str, AbstractContextManager[nn.Module]]] = field(default_factory=list)
    shadow: nn.Module | None = None
    """A copy of the adapted model from before the contexts that are open."""
    partial: bool = False
    """Whether a part of a spec is merged or folded, so that applying it is not all of it."""
    dtype: torch.dtype = torch.float32
    before: torch.dtype = torch.float32
    """The type that it had when a context was opened: what is merged is rounded to that."""
    cast: bool = False
    """Whether it was cast since a context is open."""

    @property
    def input(self) -> Tensor:
        return self.kind.input(self.dtype)

    def run(self, model: nn.Module | None = None) -> Tensor:
        with torch.no_grad():
            return (model or self.model)(self.input)

    @property
    def shown(self) -> str | None:
        kinds = [kind for kind, _ in self.open]
        return DISABLED if DISABLED in kinds else MERGED if kinds else None

    @property
    def adapted(self) -> nn.Module:
        """What it is, or will be again when all contexts are left."""
        return self.shadow if self.shadow is not None and self.open else self.model

    @property
    def trained(self) -> list[str]:
        """The base's parameters that specs in force train."""
        record = self.model.__dict__.get("_surgery")
        return sorted(record.claimed()) if record else []
