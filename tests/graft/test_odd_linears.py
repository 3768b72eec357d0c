"""Layers that multiply with a weight and are no `nn.Linear`, or are one and do something else."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import randomise_added
from tests.models import randomise

IN, OUT = 6, 10


class Scaled(nn.Module):
    """A product, and beside it what is no tensor, as integer-only layers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(OUT, IN))
        self.bias = nn.Parameter(torch.empty(OUT))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return nn.functional.linear(x, self.weight, self.bias), scale


class Plain(nn.Module):
    """A product that another class than `nn.Linear` writes out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(OUT, IN))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class Routed(nn.Module):
    """A product, and a choice that is made by it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(OUT, IN))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = nn.functional.linear(x, self.weight)
        return scores, scores.topk(2).values


class Bent(nn.Module):
    """More than a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(OUT, IN))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight).relu()


class Grouped(nn.Linear):
    """Blocks of one matrix, each multiplied with inputs of its own."""

    def forward(self, x: Tensor) -> Tensor:
        blocks = self.weight.view(2, -1, self.in_features)
        return torch.einsum("...gi,goi->...go", x, blocks)


class Around(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        return (found[0] if isinstance(found, tuple) else found).sin()


def around(layer: nn.Module, seed: int = 0) -> nn.Module:
    return randomise(Around(layer), seed).double().eval()


def run_input() -> Tensor:
    return torch.randn(3, 5, IN, generator=torch.Generator().manual_seed(1)).double()


def run(model: nn.Module) -> Tensor:
    return model(run_input())


@pytest.mark.parametrize("kind", [Scaled, Plain])
@pytest.mark.parametrize(
    "method", ["lora(3)", "dora(2)", "ia3", "ia3_input", "gated lora(2)", "shift"]
)
def test_a_layer_of_another_class_is_adapted_as_a_linear_is(kind: type, method: str) -> None:
    model, other = around(kind()), around(nn.Linear(IN, OUT, kind is Scaled))
    x = torch.zeros(3, 5, IN).double()
    for adapted in (model, other):
        verb = "" if method.startswith("gated") else "apply "
        surgery.apply(adapted, f"on `layer` {verb}{method}", example_inputs=x, seed=0)
        randomise_added(adapted)
    torch.testing.assert_close(run(model), run(other))
    run(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in surgery.trainable(model).values())
    if "gated" not in method and method != "shift":
        with surgery.merged(model):
            torch.testing.assert_close(run(model), run(other))
    surgery.remove(model)
    assert torch.equal(run(model), run(around(kind())))


def test_what_does_more_is_no_linear_layer() -> None:
    x = torch.zeros(3, 5, IN).double()
    with pytest.raises(surgery.SurgeryError, match="S401"):
        surgery.plan(around(Bent()), "on `layer` apply lora(2)", example_inputs=x)


@pytest.mark.parametrize("method", ["apply lora(3)", "gated lora(2)"])
def test_what_is_made_of_a_product_is_made_of_the_changed_one(method: str) -> None:
    model = around(Routed())
    surgery.apply(model, f"on `layer` {method}", example_inputs=run_input(), seed=0)
    randomise_added(model)
    scores, best = model.layer(run_input())  # type: ignore[operator]
    assert torch.equal(best, scores.topk(2).values)
    assert not torch.allclose(scores, around(Routed()).layer(run_input())[0])  # type: ignore[operator]


@pytest.mark.parametrize(
    "method", ["lora(2)", "dora(2)", "ia3_input", "lora(2)\non `layer` apply ia3"]
)
def test_a_linear_of_another_geometry_is_adapted_in_its_weight(method: str) -> None:
    model = around(Grouped(IN, 2 * OUT))
    x = run_input()[:, :2]
    base = model(x)
    surgery.apply(model, f"on `layer` apply {method}", example_inputs=x, seed=0)
    torch.testing.assert_close(model(x), base)
    randomise_added(model)
    adapted = model(x)
    surgery.merge(model)
    torch.testing.assert_close(model(x), adapted)
    assert not torch.allclose(adapted, base)


class Packed(nn.Linear):
    """A weight in whole numbers, and its inputs in another place than the weight says."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__(IN, OUT)
        self.weight = nn.Parameter(torch.ones(OUT, IN, dtype=torch.int8), requires_grad=False)
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.turned else x
        y = nn.functional.linear(x, self.weight.to(x.dtype) / 7, self.bias)
        return y.transpose(1, 2) if self.turned else y


@pytest.mark.parametrize(
    "method", ["lora(2)", "lora(2, dropout = 0.5)", "ia3", "ia3_input", "shift"]
)
def test_methods_run_around_a_weight_that_cannot_be_changed(method: str) -> None:
    model = around(Packed())
    surgery.apply(model, f"on `layer` apply {method}", example_inputs=run_input(), seed=0)
    torch.testing.assert_close(run(model), run(around(Packed())))
    randomise_added(model)
    assert not torch.allclose(run(model), run(around(Packed())))
    with pytest.raises(surgery.SurgeryError, match=r"S513[\s\S]*does not hold a plain weight"):
        surgery.merge(model)


def test_what_would_read_a_weight_that_cannot_be_read_is_told_when_planned() -> None:
    with pytest.raises(surgery.SurgeryError, match=r"S419.*`Packed`.*no plain weight"):
        surgery.plan(around(Packed()), "on `layer` apply dora(2)", example_inputs=run_input())


def test_another_geometry_around_such_a_weight_is_told_when_planned() -> None:
    x = torch.zeros(3, IN, 5).double()
    with pytest.raises(surgery.SurgeryError, match=r"S401.*\[3, 10, 5\] of \[3, 6, 5\]"):
        surgery.plan(around(Packed(turned=True)), "on `layer` apply lora(2)", example_inputs=x)


def test_a_layer_without_sizes_is_told_when_planned() -> None:
    with pytest.raises(surgery.SurgeryError, match=r"S420.*`layer` \(`LazyLinear`\)"):
        surgery.plan(Around(nn.LazyLinear(OUT)), "on `layer` apply lora(2)")


@pytest.mark.parametrize("make", [nn.LazyLinear, partial(nn.LazyConvTranspose2d, kernel_size=3)])
def test_a_layer_without_sizes_stays_as_it_is_when_a_spec_is_refused(make: Any) -> None:
    model, x = nn.Sequential(make(OUT)), torch.randn(2, 4, 6, 6)
    for example in (None, x):
        with pytest.raises(surgery.SurgeryError, match="S420"):
            surgery.apply(model, "on `0` apply lora(2)", example_inputs=example)
    assert model(x).shape[0] == 2
    surgery.apply(model, "on `0` apply lora(2)", example_inputs=x)


class Clamped(nn.Module):
    """Calls its part in evaluation; in training it multiplies with the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return nn.functional.linear(x, self.layer.weight.clamp(-0.5, 0.5), self.layer.bias)
        return self.layer(x)


@pytest.mark.parametrize("method", ["lora(3)", "dora(2)", "ia3"])
def test_what_reads_a_weight_in_training_alone_reads_the_changed_one(method: str) -> None:
    model = randomise(Clamped()).double().eval()
    surgery.apply(model, f"on `layer` apply {method}", example_inputs=run_input(), seed=0)
    randomise_added(model)
    adapted, trained = run(model), run(model.train())
    trained.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in surgery.trainable(model).values())
    assert not torch.allclose(trained, adapted)
    surgery.merge(model)
    torch.testing.assert_close(run(model), trained)
    torch.testing.assert_close(run(model.eval()), adapted)


def test_a_method_that_has_no_weight_for_it_to_read_is_refused() -> None:
    model = randomise(Clamped()).double().eval()
    with pytest.raises(surgery.SurgeryError, match=r"S423.*the model reads this weight"):
        surgery.apply(model, "on `layer` gated lora(2)", example_inputs=run_input(), seed=0)
