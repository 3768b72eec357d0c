"""Layers of model libraries with a forward of their own, and forwards however they are written."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import surgery
from tests import models
from tests.laws.strategies import added, randomise_added, same_bits, snapshot

MERGING = ("lora(3)", "dora(2)", "ia3", "ia3_input", "shift", "loha(2)")
OTHERS = ("lora(2, dropout = 0.5)", "gated lora(2)", "sequential adapter(2)")
IDS = torch.tensor([[5, 2, 7], [1, 1, 3]])


class Conv2dSame(nn.Conv2d):
    """Pads as its input needs, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        needed = (
            max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            for size, kernel, stride, dilation in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        high, wide = needed
        x = functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class Standardised(nn.Conv2d):
    """Standardises its weight, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class Causal(nn.Conv1d):
    """Changes what is called by its parent's forward."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(functional.pad(input, (2, 0)), weight, bias)


class ParakeetHead(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Places(nn.Embedding):
    """Rows by their place, as Whisper's."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[2 : 2 + ids.shape[-1]].expand(*ids.shape, -1)


def _gemma() -> nn.Module:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    return Gemma3TextScaledWordEmbedding(9, 6, padding_idx=0, embed_scale=2.5)


def _bart() -> nn.Module:
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    return BartScaledWordEmbedding(9, 6, 0, embed_scale=3.0)


LAYERS = {
    "Conv2dSame": (lambda: Conv2dSame(4, 6, 3, stride=2, groups=2), torch.randn(2, 4, 7, 8)),
    "Standardised": (lambda: Standardised(4, 6, 3), torch.randn(2, 4, 7, 8)),
    "Causal": (lambda: Causal(4, 6, 3), torch.randn(2, 4, 7)),
    "ParakeetHead": (lambda: ParakeetHead(4, 6, 1), torch.randn(2, 7, 4)),
    "Places": (lambda: Places(9, 6), IDS),
    "Bart": (_bart, IDS),
    "Gemma3": (_gemma, IDS),
}
ONLY_CHANGED = {"Standardised", "Places"}
"""Those that do more with their weight than multiply."""


class Model(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sin()


def built(name: str) -> tuple[nn.Module, Tensor]:
    make, x = LAYERS[name]
    model = models.randomise(Model(make()), 1).double().eval()
    return model, x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", [*MERGING, *OTHERS])
def test_a_layer_runs_its_own_forward_on_its_changed_weight(name: str, method: str) -> None:
    model, x = built(name)
    if "gated" in method and x.dim() == 4:
        pytest.skip("gates are for states of three dims")
    verb = "" if method.startswith(("gated", "sequential")) else "apply "
    expected, before = model(x), snapshot(model)
    spec = f"on `layer` {verb}{method}"
    if name in ONLY_CHANGED and method in OTHERS:
        with pytest.raises(surgery.SurgeryError, match=r"S419.*forward of its own"):
            surgery.apply(model, spec, example_inputs=x)
        assert same_bits(snapshot(model), before)
        return
    surgery.apply(model, spec, example_inputs=x, seed=0)
    torch.testing.assert_close(model(x), expected)
    randomise_added(model)
    adapted = model(x)
    adapted.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in added(model).values())
    if method not in OTHERS[1:]:
        with surgery.merged(model):
            torch.testing.assert_close(model(x), adapted)
    surgery.remove(model)
    assert torch.equal(model(x), expected)
    assert same_bits(snapshot(model), before)


@pytest.mark.parametrize("name", ["Conv2dSame", "Bart"])
@pytest.mark.parametrize("method", ["lora(2)", "lora(2, dropout = 0.5)"])
def test_such_a_layer_compiles_whole_and_copies(name: str, method: str) -> None:
    model, x = built(name)
    surgery.apply(model, f"on `layer` apply {method}", example_inputs=x, seed=0)
    randomise_added(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@torch.no_grad()
def test_low_rank_rows_are_scaled_as_the_table_is() -> None:
    model, ids = built("Bart")
    expected = model.layer(ids)  # type: ignore[operator]
    surgery.apply(model, "on `layer` apply lora(2)", seed=0)
    A, B = (p.normal_() for p in surgery.trainable(model).values())
    wanted = expected + 3 * (B @ A).t()[ids]
    torch.testing.assert_close(model.layer(ids), wanted)  # type: ignore[operator]


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora(2)", "ia3_input", "dora(2)"])
def test_tables_of_a_whole_model(method: str) -> None:
    base = models.build("bart")
    base.get_submodule("model.encoder.embed_tokens").embed_scale = 2.0  # type: ignore[assignment]
    ids = torch.randint(3, 90, (2, 5))
    model = copy.deepcopy(base)
    surgery.apply(model, f"on embedding apply {method}", seed=0)
    torch.testing.assert_close(model(ids).logits, base(ids).logits)
    randomise_added(model)
    assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-3)


class Caches(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if "kept" not in self.__dict__:
            self.__dict__["kept"] = self.weight.sin()
        return functional.linear(x, self.kept, self.bias)


class Writes(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = functional.normalize(self.weight.data)
        return functional.linear(x, self.weight, self.bias)


class Passes(nn.Linear):
    def forward(self, x: Tensor, mode: str) -> Tensor:
        return functional.linear(x, self._parameters["weight"].sin(), self.bias)


class Detaches(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.detach().sin(), self.bias)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Caches, "whenever it runs"),
        (Writes, "writes to the weight"),
        (Passes, "does not read `self.weight`"),
        (Detaches, "without a gradient"),
    ],
)
def test_a_forward_that_would_not_see_a_changed_weight_is_told(kind: Any, reason: str) -> None:
    layer = kind(4, 6)
    before = {**layer.__dict__}, snapshot(layer)
    with pytest.raises(surgery.SurgeryError, match=rf"S419.*{reason}[\s\S]*help"):
        surgery.plan(Model(layer), "on `layer` apply lora(2)")
    assert (layer.__dict__.keys(), same_bits(snapshot(layer), before[1])) == (
        before[0].keys(),
        True,
    )


def _decorated(forward: Any) -> Any:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return run


class Block(nn.Module):
    """Two layers; its forward is written in one of several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def compute(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class This(Block):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return this.compute(x)


class Kwargs(Block):
    def forward(module, *, states: Tensor, **more: Any) -> Tensor:  # noqa: N805
        return module.compute(states)


class Rest(Block):
    def forward(self, *args: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.compute(args[-1])


class Decorated(Block):
    @_decorated
    def forward(me, x: Tensor, scale: float = 1.0) -> tuple[Tensor, float]:  # noqa: N805
        return me.compute(x), scale


class Inherits(Decorated):
    pass


class Partial(Block):
    def _run(this, flag: bool, x: Tensor) -> Tensor:  # noqa: N805
        return this.compute(x)

    forward = functools.partialmethod(_run, True)


class Outer(nn.Module):
    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.mlp = kind()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.mlp, Kwargs):
            found = self.mlp(states=x, other=1)
        elif isinstance(self.mlp, Rest):
            found = self.mlp(torch.ones(3), x, scale=2.0)
        else:
            found = self.mlp(x)
        return x + (found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize("kind", [This, Kwargs, Rest, Decorated, Inherits, Partial])
@pytest.mark.parametrize("verb", ["sequential", "parallel"])
def test_a_forward_may_name_its_arguments_as_it_likes(kind: type[nn.Module], verb: str) -> None:
    base, x = models.randomise(Outer(kind)).double().eval(), torch.randn(2, 3, 4).double()
    outputs: list[Tensor] = []
    for made in (base, models.randomise(Outer(This)).double().eval()):
        model = copy.deepcopy(made)
        surgery.apply(model, f"on `mlp` {verb} adapter(2)", example_inputs=x, seed=0)
        torch.testing.assert_close(model(x), made(x))
        outputs.append(randomise_added(model)(x))
        assert not torch.allclose(outputs[-1], made(x))
    if kind is not Rest:
        torch.testing.assert_close(*outputs)
