"""Layers of every kind with inputs that fit them, and methods that fit the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.planning.layers import read_layer
from tests.models import randomise

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 6e-2}
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MERGING = ("lora", "rslora", "dora", "vera", "ia3", "ia3_input", "loha", "lokr", "shift", "linear")
EVERY = (*MERGING, "sequential", "parallel")
# Torch says so once in a process, whichever test comes first.
SAME_PADDING = pytest.mark.filterwarnings("ignore:Using padding='same'")


@dataclass(frozen=True)
class Case:
    """A layer in a model, an input for it, and the methods that go on it."""

    make: Callable[[], nn.Module]
    draw: Callable[[], Tensor]
    methods: tuple[str, ...]
    dtype: torch.dtype
    words: str

    def __repr__(self) -> str:
        return f"{self.words} {self.dtype} <- {'; '.join(self.methods)}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"method{i}" for i in range(len(self.methods)))

    @property
    def spec(self) -> str:
        return self.spec_of(range(len(self.methods)))

    def spec_of(self, numbers: range | list[int]) -> str:
        return "\n".join(f"on `layer` {self.methods[i]} as method{i}" for i in numbers)

    def base(self) -> Holder:
        return randomise(Holder(self.make()), 1).to(self.dtype).eval()

    def input(self) -> Tensor:
        x = self.draw()
        return x.to(self.dtype) if x.is_floating_point() else x

    def adapted(self, seed: int = 0, spec: str | None = None) -> Holder:
        """The base with the methods on it, none of its parameters at its start."""
        return randomise_added(self.fresh(seed, spec))

    def fresh(self, seed: int = 0, spec: str | None = None) -> Holder:
        model = self.base()
        surgery.apply(
            model, self.spec if spec is None else spec, example_inputs=self.input(), seed=seed
        )
        return model


class Holder(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def added(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a spec put into ``model``, by name."""
    with surgery.disabled(model):
        known = {id(p) for p in model.parameters()}
    return {n: p for n, p in model.named_parameters() if id(p) not in known}


def randomise_added(model: nn.Module, std: float = 0.3, seed: int = 2) -> nn.Module:
    """Noise on every added parameter; by its name, so that other parameters change nothing."""
    with torch.no_grad():
        for name, parameter in added(model).items():
            generator = torch.Generator().manual_seed(seed + sum(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((std * noise).to(parameter.dtype))
    return model


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, type], dict[str, bool]]:
    """What a failed or undone change must leave alone: tensors, classes, flags."""
    classes = {n: type(m) for n, m in model.named_modules()}
    return snapshot(model), classes, {n: p.requires_grad for n, p in model.named_parameters()}


def assert_state(
    model: nn.Module, before: tuple[dict[str, Tensor], dict[str, type], dict[str, bool]]
) -> None:
    now = state_of(model)
    assert same_bits(now[0], before[0])
    assert now[1:] == before[1:]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Equal up to rounding in ``dtype``, relative to the largest value there is."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    error = (actual.detach().double() - expected.detach().double()).abs()
    assert not error.numel() or float(error.max()) <= TOLERANCE[dtype] * scale


@st.composite
def linears(draw: st.DrawFn) -> tuple[Callable[[], nn.Module], Callable[[], Tensor], str]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    bias = draw(st.booleans())
    shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), columns)
    words = f"Linear({columns}, {rows}, {bias}) on {shape}"
    return lambda: nn.Linear(columns, rows, bias=bias), _floats(shape), words


@st.composite
def transposed_linears(
    draw: st.DrawFn,
) -> tuple[Callable[[], nn.Module], Callable[[], Tensor], str]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), columns)

    def make() -> nn.Module:
        from transformers.pytorch_utils import Conv1D

        return Conv1D(rows, columns)

    return make, _floats(shape), f"Conv1D({columns}, {rows}) on {shape}"


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Callable[[], nn.Module], Callable[[], Tensor], str]:
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2)))
    into, out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    dilation = draw(st.integers(1, 2))
    padding = draw(st.sampled_from(("same", "valid", 0, 1)))
    settings = {
        "groups": groups,
        "dilation": dilation,
        "stride": 1 if padding == "same" else draw(st.integers(1, 2)),
        "padding": padding,
        "padding_mode": draw(st.sampled_from(PADDING_MODES)),
        "bias": draw(st.booleans()),
    }
    size = tuple(draw(st.integers(5, 6)) for _ in range(spatial))
    batch = draw(st.sampled_from(((), (1,), (2,))))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    shape = (*batch, into, *size)
    words = f"{kind.__name__}({into}, {out}, {kernel}, {settings}) on {shape}"
    return lambda: kind(into, out, kernel, **settings), _floats(shape), words


@st.composite
def transposed_convolutions(
    draw: st.DrawFn,
) -> tuple[Callable[[], nn.Module], Callable[[], Tensor], str]:
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2)))
    into, out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    settings = {
        "groups": groups,
        "dilation": dilation,
        "stride": stride,
        "padding": draw(st.integers(0, 1)),
        "output_padding": draw(st.integers(0, max(stride, dilation) - 1)),
        "bias": draw(st.booleans()),
    }
    size = tuple(draw(st.integers(3, 4)) for _ in range(spatial))
    batch = draw(st.sampled_from(((), (1,), (2,))))
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial - 1]
    shape = (*batch, into, *size)
    words = f"{kind.__name__}({into}, {out}, {kernel}, {settings}) on {shape}"
    return lambda: kind(into, out, kernel, **settings), _floats(shape), words


@st.composite
def embeddings(draw: st.DrawFn) -> tuple[Callable[[], nn.Module], Callable[[], Tensor], str]:
    rows, width = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    padding = draw(st.sampled_from((None, 0, rows - 1)))
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))

    def ids() -> Tensor:
        return torch.randint(rows, shape, generator=torch.Generator().manual_seed(0))

    words = f"Embedding({rows}, {width}, {padding}) on {shape}"
    return lambda: nn.Embedding(rows, width, padding_idx=padding), ids, words


Drawn = st.SearchStrategy[tuple[Callable[[], nn.Module], Callable[[], Tensor], str]]
KINDS: dict[str, Drawn] = {
    "linear": linears(),
    "transposed": transposed_linears(),
    "convolution": convolutions(),
    "transposed convolution": transposed_convolutions(),
    "embedding": embeddings(),
}
"""Layers of each kind that is registered, by its name, with inputs that fit."""


def layers() -> Drawn:
    return st.one_of(KINDS.values())


def _floats(shape: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(0))


@st.composite
def methods(draw: st.DrawFn, sizes: tuple[int, int], rule: str) -> str:
    """The application of ``rule`` to a layer of ``sizes`` [n, m], as a spec writes it."""
    smaller = min(sizes)
    rank = draw(st.integers(1, smaller))
    alpha = draw(st.sampled_from(("", ", alpha = 3")))
    match rule:
        case "ia3" | "ia3_input" | "shift":
            return f"apply {rule}()"
        case "vera":
            return f"apply vera(r = {draw(st.integers(1, 5))})"
        case "lokr":
            parts = draw(st.sampled_from(("", ", rows = 2", ", columns = 2, rows = 1")))
            return f"apply lokr(r = {rank}{alpha}{parts})"
        case "linear":
            return f"sequential adapter({rank}, act = identity)"
        case "sequential" | "parallel":
            act = draw(st.sampled_from(("relu", "gelu", "tanh")))
            return f"{rule} adapter({rank}, act = {act})"
        case "gated":
            return f"gated lora(r = {rank})"
        case _:
            return f"apply {rule}(r = {rank}{alpha})"


@st.composite
def cases(
    draw: st.DrawFn,
    rules: tuple[str, ...] = MERGING,
    most: int = 3,
    kinds: st.SearchStrategy | None = None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    unmergeable: bool = False,
) -> Case:
    """A layer, an input and one to ``most`` methods of ``rules``, some of them twice."""
    make, values, words = draw(layers() if kinds is None else kinds)
    layer = read_layer(make())
    assert layer is not None
    fitting = [r for r in rules if r != "parallel" or layer.out == layer.into]
    if layer.groups > 1 and not unmergeable:
        # Outputs that read different inputs mix to what is no grouped convolution.
        fitting = [r for r in fitting if r != "linear"]
    chosen = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=most))
    # What reads the weight stands in front of what has none.
    last = ("sequential", "parallel", "gated", *(["linear"] if layer.groups > 1 else []))
    chosen.sort(key=last.__contains__)
    applied = tuple(draw(methods((layer.out, layer.into), rule)) for rule in chosen)
    return Case(make, values, applied, draw(st.sampled_from(dtypes)), words)
