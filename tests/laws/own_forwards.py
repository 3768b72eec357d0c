"""Layers whose class has a forward of its own, drawn from what people write in one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.laws.strategies import MERGING, methods
from tests.models import randomise

IN, OUT, WORDS = 4, 6, 9
BEFORE = ("scale", "clamp", "turned", "pad", "cast", "dropout")
WEIGHTS = ("tanh", "clamp", "normal", "columns", "frozen", "kept", "written", "past")
AFTER = ("scale", "relu", "extra", "norm", "cast")
GIVEN = ("plain", "named", "more", "rest", "wrapped", "partial", "inherited")
RESULTS = ("plain", "single", "pair", "beside")


class Other(nn.Module):
    """A layer of no class that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(OUT, IN))
        self.bias = nn.Parameter(torch.empty(OUT))


_BASES: dict[str, tuple[type[nn.Module], tuple[Any, ...]]] = {
    "linear": (nn.Linear, (IN, OUT)),
    "transposed": (Conv1D, (OUT, IN)),
    "conv1d": (nn.Conv1d, (IN, OUT, 3)),
    "conv2d": (nn.Conv2d, (IN, OUT, (2, 3))),
    "conv_transpose1d": (nn.ConvTranspose1d, (IN, OUT, 3)),
    "conv_transpose2d": (nn.ConvTranspose2d, (IN, OUT, (2, 3))),
    "embedding": (nn.Embedding, (WORDS, OUT)),
    "other": (Other, ()),
}


@dataclass(frozen=True)
class Own:
    """A forward of its own: what it does to the input, to the weight and to the result."""

    kind: str
    before: tuple[str, ...]
    weight: str | None
    product: str
    after: tuple[str, ...]
    given: str
    result: str
    bias: bool

    def make(self) -> nn.Module:
        base, sizes = _BASES[self.kind]
        forward = _signature(self, lambda module, x: self.run(base, module, x))
        cls = type("Own", (base,), {"forward": forward})
        if self.given == "inherited":
            cls = type("Inherited", (cls,), {})
        layer = cls(*sizes)
        layer.extra = nn.Parameter(torch.empty(OUT))
        if self.lacks_bias:
            layer.register_parameter("bias", None)
        return layer

    def input(self) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        if self.kind == "embedding":
            return torch.randint(WORDS - 1, (2, 5), generator=generator)
        images = {"1d": (2, IN, 7), "2d": (2, IN, 6, 5)}
        shape = images[self.kind[-2:]] if self.is_convolution else (2, 5, IN)
        x = 2 * torch.randn(shape, generator=generator).double()
        return x.transpose(-1, -2).contiguous() if self.is_turned else x

    @property
    def is_turned(self) -> bool:
        """Whether the features are where another layer of the kind has them not."""
        return "turned" in self.before and self.kind[-2:] != "2d" and self.kind != "embedding"

    @property
    def lacks_bias(self) -> bool:
        """Whether it has none where others of its kind have one."""
        return not self.bias and (self.kind in ("linear", "other") or self.is_convolution)

    @property
    def is_convolution(self) -> bool:
        return self.kind.startswith("conv")

    @property
    def is_followed(self) -> bool:
        """Whether the forward asks for the weight each time, with its gradient."""
        return self.weight not in ("frozen", "kept", "written", "past")

    def run(self, base: Any, module: Any, x: Tensor) -> Any:
        for step in self.before:
            x = _before(self, step, module, x)
        y = self.multiplied(base, module, x)
        for step in self.after:
            y = _after(step, module, y, self.is_convolution)
        y = y.transpose(-1, -2) if self.is_turned else y
        made = {"single": (y,), "pair": (y, y.relu()), "beside": (y, "beside")}
        return made.get(self.result, y)

    def multiplied(self, base: Any, module: Any, x: Tensor) -> Tensor:
        if self.weight is None and self.product == "super" and self.kind != "other":
            return base.forward(module, x)
        weight, bias = self.read(module), getattr(module, "bias", None)
        if self.kind == "embedding":
            return weight[x] if self.product == "other" else functional.embedding(x, weight)
        if self.is_convolution:
            convolve = getattr(functional, self.kind)
            if self.product != "other" or bias is None:
                return convolve(x, weight, bias)
            return convolve(x, weight) + bias.view(-1, *[1] * (x.dim() - 2))
        turned = self.kind == "transposed"
        if self.product == "other":
            y = torch.einsum("...i,io->...o" if turned else "...i,oi->...o", x, weight)
        else:
            y = x @ (weight if turned else weight.t())
        return y if bias is None else y + bias

    def read(self, module: Any) -> Tensor:
        match self.weight:
            case "tanh":
                return module.weight.tanh()
            case "clamp":
                return module.weight.clamp(-0.3, 0.3)
            case "normal":
                return functional.normalize(module.weight, dim=0)
            case "columns":
                return torch.cat([module.weight[:2], module.weight[2:]])
            case "frozen":
                return module.weight.detach()
            case "kept":
                if "kept" not in module.__dict__:
                    module.__dict__["kept"] = module.weight.sin()
                return module.kept
            case "written":
                module.weight.data.clamp_(-0.3, 0.3)
                return module.weight
            case "past":
                return module._parameters["weight"].sin()
            case _:
                return module.weight


def _before(own: Own, step: str, module: Any, x: Tensor) -> Tensor:
    if own.kind == "embedding":
        return x + 1 if step == "pad" else x
    match step:
        case "scale":
            return 3 * x
        case "clamp":
            return x.clamp(-0.7, 0.7)
        case "turned":
            return x.transpose(-1, -2).contiguous() if own.is_turned else x
        case "pad":
            return functional.pad(x, (2, 1)) if own.is_convolution else x
        case "cast":
            return x.float().double()
        case _:
            return functional.dropout(x, 0.5, module.training)


def _after(step: str, module: Any, y: Tensor, first: bool) -> Tensor:
    match step:
        case "scale":
            return 3 * y
        case "relu":
            return functional.leaky_relu(y, 0.3)
        case "extra":
            return y + (module.extra.view(-1, *[1] * (y.dim() - 2)) if first else module.extra)
        case "norm":
            return functional.normalize(y, dim=1 if first else -1)
        case _:
            return y.float().double()


def _signature(own: Own, run: Callable[[Any, Any], Any]) -> Any:
    """``run`` as a forward that is written in one of many ways."""

    def plain(this: Any, x: Tensor) -> Any:
        return run(this, x)

    def named(this: Any, *, x: Tensor) -> Any:
        return run(this, x)

    def more(me: Any, x: Tensor, scale: float = 1.0, *args: Any, flag: bool = False) -> Any:
        return run(me, scale * x if scale != 1 else x)

    def rest(*args: Any) -> Any:
        return run(*args)

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    def flagged(module: Any, flag: bool, x: Tensor) -> Any:
        return run(module, x)

    ways = {"named": named, "more": more, "rest": rest, "wrapped": wrapped}
    if own.given == "partial":
        return functools.partialmethod(flagged, True)
    return ways.get(own.given, plain)


class Around(nn.Module):
    """A model of one layer, whatever that is given by and gives."""

    def __init__(self, own: Own):
        super().__init__()
        self.layer = own.make()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        more = self.own.given == "more" and self.own.kind != "embedding"
        given = {"named": ((), {"x": x})}.get(self.own.given, ((x, 2.0) if more else (x,), {}))
        found = self.layer(*given[0], **given[1])
        if isinstance(found, tuple):
            found = sum(part for part in found if isinstance(part, Tensor))
        return found.sin()


@dataclass(frozen=True)
class Case:
    own: Own
    applied: tuple[str, ...]

    @property
    def spec(self) -> str:
        return "\n".join(f"on `layer` {method} as m{i}" for i, method in enumerate(self.applied))

    def base(self) -> nn.Module:
        return randomise(Around(self.own), 1).double().eval()


@st.composite
def own_forwards(draw: st.DrawFn) -> Own:
    def some(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True)))

    weight = draw(st.sampled_from((None, None, *WEIGHTS)))
    return Own(
        draw(st.sampled_from(tuple(_BASES))),
        # What is turned is turned first: padding is at places, not at features.
        tuple(sorted(some(BEFORE), key=lambda step: step != "turned")),
        weight,
        draw(st.sampled_from(("super", "written", "other"))),
        some(AFTER),
        draw(st.sampled_from(GIVEN)),
        draw(st.sampled_from(RESULTS)),
        draw(st.booleans()),
    )


@st.composite
def own_cases(draw: st.DrawFn) -> Case:
    own = draw(own_forwards())
    rules = (*(rule for rule in MERGING if rule != "linear"), "dropped", "sequential", "gated")
    chosen = draw(st.lists(st.sampled_from(rules), min_size=1, max_size=2))
    sizes = (OUT, WORDS if own.kind == "embedding" else IN)
    ranks = (min(sizes), min(sizes))
    applied = tuple(
        f"apply lora({draw(st.integers(1, 3))}, dropout = 0.4)"
        if rule == "dropped"
        else draw(methods(ranks, rule))
        for rule in chosen
    )
    return Case(own, applied)
