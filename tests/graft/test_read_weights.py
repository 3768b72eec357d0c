"""Weights that a module multiplies with itself: any method acts there as on a layer of its own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgery
from tests.laws.strategies import added, assert_state, randomise_added, state_of
from tests.models import randomise

BATCH, LENGTH, MEMORY, HEADS, FEATURES = 3, 5, 4, 2, 6
WIDTH = HEADS * FEATURES
MERGING = ("lora(3)", "dora(2)", "ia3", "ia3_input", "loha(2)")
MERGES = (*MERGING, "lora(2, dropout = 0.5)")
OTHERS = (
    "apply shift",
    "gated lora(3)",
    "sequential adapter(4)",
    "apply lora(2, dropout = 0.5)",
    "gated parallel adapter(4)",
)
METHODS = (*(f"apply {name}" for name in MERGING), *OTHERS)


class Held(nn.Module):
    """Projections as parameters, each multiplied in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.empty(WIDTH, HEADS, FEATURES))
        self.k = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.b = nn.Parameter(torch.empty(WIDTH))
        self.v = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.o = nn.Parameter(torch.empty(WIDTH, HEADS, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("bth,hnd->bntd", x, self.q)
        k = (
            functional.linear(x, weight=self.k, bias=self.b)
            .unflatten(-1, (HEADS, -1))
            .transpose(1, 2)
        )
        v = (x @ self.v).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + torch.einsum("bntd,hnd->bth", y, self.o)


class Called(nn.Module):
    """The same with layers; ``memory`` is what keys and values are made of, if it is given."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias) for _ in range(4))

    def forward(
        self, x: Tensor, memory: Tensor | None = None, values: Tensor | None = None
    ) -> Tensor:
        memory = x if memory is None else memory
        given = (x, memory, memory if values is None else values)
        parts = (layer(t) for layer, t in zip((self.q, self.k, self.v), given, strict=True))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.o(y)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Called()
        self.inner.k = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def held() -> tuple[Held, Around]:
    """A module that holds weights, and one with the same in layers."""
    model, other = randomise(Held()).double().eval(), Around().double().eval()
    with torch.no_grad():
        other.inner.q.weight.copy_(model.q.flatten(1).t())
        other.inner.k.weight.copy_(model.k)
        other.inner.k.bias.copy_(model.b)
        other.inner.v.weight.copy_(model.v.t())
        other.inner.o.weight.copy_(model.o.flatten(1))
    return model, other  # type: ignore[return-value]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


X = numbers(BATCH, LENGTH, WIDTH)


def give(model: nn.Module, other: nn.Module, names: dict[str, str]) -> None:
    """Random values for what was added to ``other``, and the same for ``model``."""
    randomise_added(other)
    new = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in added(model).items():
            for one, another in names.items():
                name = name.replace(one, another)
            parameter.copy_(new[name])


@pytest.mark.parametrize("role", "qkvo")
@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_is_adapted_as_a_layer_is(role: str, method: str) -> None:
    model, other = held()
    for adapted in (model, other):
        surgery.apply(adapted, f"on {role} {method} as new", example_inputs=X, seed=0)
    give(model, other, {f"new.{role}.": f"inner.{role}.new."})
    for training in (False, True):
        expected = torch.random.manual_seed(3) and other.train(training)(X)
        actual = torch.random.manual_seed(3) and model.train(training)(X)
        torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    for one, another in zip(added(model).values(), added(other).values(), strict=True):
        torch.testing.assert_close(one.grad, another.grad)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_undone_copied_and_loaded(method: str, tmp_path: Path) -> None:
    model, _ = held()
    before, base = state_of(model), model(X)
    surgery.apply(model, f"on q|k|v|o {method}", example_inputs=X, seed=0)
    randomise_added(model)
    adapted = model(X)
    assert not torch.allclose(adapted, base)
    assert torch.equal(copy.deepcopy(model)(X), adapted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), adapted)
    surgery.save(model, tmp_path)
    with surgery.merged(model):
        torch.testing.assert_close(model(X), adapted)
        left = [name for name in dict(model.named_parameters()) if name not in before[0]]
        assert (left == []) == (method.removeprefix("apply ") in MERGES)
    with surgery.disabled(model):
        assert torch.equal(model(X), base)
    surgery.remove(model)
    assert torch.equal(model(X), base)
    assert_state(model, before)
    again = surgery.load(held()[0], tmp_path, example_inputs=X)
    assert torch.equal(again(X), adapted)


def attention(batch_first: bool = True) -> tuple[nn.MultiheadAttention, Called]:
    """PyTorch's own attention, and one with the same weights in layers, of the batch first."""
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
    model, other = randomise(model).double().eval(), Called(bias=True).double().eval()
    assert isinstance(model, nn.MultiheadAttention)
    parts = [other.q, other.k, other.v]
    with torch.no_grad():
        for part, weight, bias in zip(
            parts, model.in_proj_weight.chunk(3), model.in_proj_bias.chunk(3), strict=True
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        other.o.weight.copy_(model.out_proj.weight)
        other.o.bias.copy_(model.out_proj.bias)
    return model, other


GIVEN = {
    "self": (X,),
    "cross": (X, numbers(BATCH, MEMORY, WIDTH, seed=1)),
    "three": (X, *(numbers(BATCH, MEMORY, WIDTH, seed=seed) for seed in (1, 2))),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("method", OTHERS[1:])
def test_attention_is_adapted_as_one_of_layers_is(
    method: str, given: str, batch_first: bool
) -> None:
    """Gates are means over the tokens of each example, whichever way round it is given."""
    model, other = attention(batch_first)
    inputs = GIVEN[given]
    each = [inputs[min(i, len(inputs) - 1)] for i in range(3)]
    turned = each
    if not batch_first:
        # The very tensors tell that keys and values are one.
        known = {id(t): t.transpose(0, 1) for t in each}
        turned = [known[id(t)] for t in each]
    spec = f"on q|v {method} as new"
    surgery.apply(model, spec, example_inputs=tuple(turned), seed=0)
    surgery.apply(other, spec, example_inputs=inputs, seed=0)
    give(model, other, {"q.new.": "q.new.", "v.new.": "v.new."})
    torch.manual_seed(3)
    found, _ = model(*turned, need_weights=False)
    expected = other(*inputs)
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    new = dict(other.named_parameters())
    for name, parameter in added(model).items():
        torch.testing.assert_close(parameter.grad, new[name].grad)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4 * WIDTH, HEADS, 20, batch_first=True, dropout=0.0)
    return randomise(nn.TransformerEncoder(layer, 2)).double().eval()


def test_unipelt_on_a_transformer_of_torch() -> None:
    model, x = encoder(), numbers(BATCH, LENGTH, 4 * WIDTH)
    before, base = state_of(model), model(x)
    surgery.apply(model, "unipelt", example_inputs=x, seed=0)
    randomise_added(model)
    for training in (True, False):
        adapted = model.train(training)(x)
        assert not torch.allclose(adapted, base)
        model.zero_grad()
        adapted.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in surgery.trainable(model).values())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    surgery.remove(model)
    assert torch.equal(model(x), base)
    assert_state(model, before)


def test_a_gate_of_the_last_projection_cannot_know_whose_rows_are_whose() -> None:
    x = numbers(BATCH, LENGTH, 4 * WIDTH)
    with pytest.raises(surgery.SurgeryError, match=r"S411.*names 3 dims.*have 2"):
        surgery.plan(encoder(), "on o gated lora(2)", example_inputs=x)


class Switched(nn.Module):
    """Multiplies with its weight, or does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.product = True

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w) if self.product else x * self.w[0]


@pytest.mark.parametrize("place", ["`w`", "linear"])
def test_a_module_may_call_its_weight_as_it_likes(place: str) -> None:
    model, other = randomise(nn.Sequential(Switched())).double(), nn.Linear(WIDTH, WIDTH, False)
    with torch.no_grad():
        other.double().weight.copy_(model[0].w)  # type: ignore[index]
    surgery.apply(model, f"on {place} gated lora(2)", example_inputs=X, seed=0)
    surgery.apply(other, "on Linear gated lora(2)", example_inputs=X, seed=0)
    give(model, other, {"0.lora.w.": "lora."})
    torch.testing.assert_close(model(X), other(X))


def test_a_weight_that_is_used_otherwise_is_told() -> None:
    model = nn.Sequential(randomise(Switched()).double())
    surgery.apply(model, "on `w` gated lora(2)", example_inputs=X, seed=0)
    model(X)
    model[0].product = False
    with pytest.raises(surgery.SurgeryError, match=r"S430.*used otherwise"):
        model(X)
