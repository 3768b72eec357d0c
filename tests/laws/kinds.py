"""What must hold of a layer kind, whatever layer of it is drawn."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import surgery
from surgery.graft.computing import run as call
from surgery.layers import Layer, LayerKind
from surgery.planning.layers import read_layer
from tests.laws.strategies import assert_near, randomise_added
from tests.models import randomise

Inputs = tuple[Tensor, ...]


class Only(nn.Module):
    """A model that is one layer, of as many inputs as that has."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(*inputs)


def check_kind(kind: LayerKind, make: Callable[[], nn.Module], inputs: Inputs) -> None:
    """All that is asked of a kind's file, on one layer of it and inputs for that."""
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)

    def made() -> nn.Module:
        return randomise(make(), 1).double().eval()

    module = made()
    layer = check_read(kind, module)
    check_shapes(kind, layer, module._parameters["weight"].detach())
    check_run(kind, layer, module, inputs)
    check_examples(kind, layer, module)
    check_merge(layer, made, inputs)
    check_own_forward(made, inputs)
    check_words(layer, made, inputs)


def check_read(kind: LayerKind, module: nn.Module) -> Layer:
    layer = read_layer(module)
    assert layer is not None
    assert layer.kind is kind
    assert layer.native
    assert layer.plain
    assert not layer.read
    assert layer.out * layer.into == module._parameters["weight"].numel() * (
        layer.groups if kind.one_hot else 1
    )
    assert layer.bias is (module._parameters.get("bias") is not None)
    # The kind in a copy, and in what was pickled, is the one that is registered.
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other == layer
        assert other.kind is kind
    return layer


def check_shapes(kind: LayerKind, layer: Layer, weight: Tensor) -> None:
    """A weight is a matrix, and one whose rows are other outputs is a weight with so many."""
    matrix = layer.as_matrix(call, weight)
    assert matrix.shape == (layer.out, layer.into)
    assert torch.equal(layer.as_weight(call, matrix), weight)
    rows = matrix.repeat(3, 1)[: 2 * layer.groups]
    other = kind.as_weight(call, layer, rows)
    assert torch.equal(kind.as_matrix(call, layer, other), rows)


def check_run(kind: LayerKind, layer: Layer, module: nn.Module, inputs: Inputs) -> None:
    """The operator is the module's own, and linear in its weight."""
    x, *more = inputs
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    assert weight is not None

    def run(weight: Tensor, bias: Tensor | None) -> Tensor:
        if kind.features:
            return functional.linear(x, layer.as_matrix(call, weight), bias)
        return kind.run(module, x, weight, bias, *more)

    expected = module(*inputs)
    assert_near(run(weight, bias), expected, torch.float64)
    if kind.written is not None:
        assert torch.equal(kind.written(x, weight, bias, *more), expected)
    other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).double()
    assert_near(run(weight + other, bias), run(weight, None) + run(other, bias), torch.float64)


def check_examples(kind: LayerKind, layer: Layer, module: nn.Module) -> None:
    """One of the examples, if not all, is what a forward may be given."""
    weight, ran = module._parameters["weight"], 0
    for given in kind.examples(module, layer, weight):
        try:
            module(*given)
        except (RuntimeError, ValueError):
            continue
        ran += 1
    assert ran


def check_merge(layer: Layer, made: Callable[[], nn.Module], inputs: Inputs) -> None:
    """What is emitted is what is merged: W + B A, and a scale of its rows and of the bias."""
    model = Only(made())
    spec = (
        "on `layer` apply lora(2)  on `layer` apply ia3"
        if min(layer.out, layer.into) > 1
        else ("on `layer` apply lora(1)  on `layer` apply ia3")
    )
    surgery.apply(model, spec, example_inputs=inputs, seed=0)
    randomise_added(model)
    A, B, scales = model.layer.lora.A, model.layer.lora.B, model.layer.ia3.l
    matrix = layer.as_matrix(call, model.layer._parameters["weight"])
    expected = layer.as_weight(call, scales.unsqueeze(1) * (matrix + B @ A)).detach()
    adapted = model(*inputs)
    surgery.merge(model)
    assert_near(model.layer.weight, expected, torch.float64)
    assert_near(model(*inputs), adapted, torch.float64)


def check_own_forward(made: Callable[[], nn.Module], inputs: Inputs) -> None:
    """A forward of a subclass's own is followed where it multiplies, and where it only reads."""

    for method in ("lora(1)", "lora(1, dropout = 0.5)", "shift"):
        module = made()
        kind = type(module)
        own = type("Own", (kind,), {"forward": lambda self, *a, _f=kind.forward: 2 * _f(self, *a)})
        plain, scaled = Only(made()), Only(made())
        scaled.layer.__class__ = own
        for model in (plain, scaled):
            surgery.apply(model, f"on `layer` apply {method}", example_inputs=inputs, seed=0)
            randomise_added(model)
        assert_near(scaled(*inputs), 2 * plain(*inputs), torch.float64)


def check_exported(made: Callable[[], nn.Module], inputs: Inputs) -> None:
    """In an exported program it is a layer again: the same parameters, the same numbers."""
    eager = Only(made())
    program = torch.export.export(Only(made()), inputs)
    spec = "on `layer` apply lora(1)  on `layer` apply ia3"
    surgery.apply(eager, spec, example_inputs=inputs, seed=0)
    adapted = surgery.apply(program, spec, seed=0)
    theirs = surgery.trainable(eager)
    assert set(surgery.trainable(adapted)) == set(theirs)
    with torch.no_grad():
        for name, parameter in surgery.trainable(adapted).items():
            assert torch.equal(parameter, theirs[name])
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
            parameter += noise
            theirs[name] += noise
    expected = eager(*inputs)
    assert_near(adapted.module()(*inputs), expected, torch.float64)
    merged = surgery.merge(adapted)
    merged = merged[0] if isinstance(merged, tuple) else merged
    assert_near(merged.module()(*inputs), expected, torch.float64)


def check_words(layer: Layer, made: Callable[[], nn.Module], inputs: Inputs) -> None:
    """Reports say what it is, and how large."""
    model = Only(made())
    text = str(surgery.diff(model, "on `layer` apply lora(1)", example_inputs=inputs))
    assert f"{layer.title} {layer.into} → {layer.out}" in text
    assert type(model.layer).__name__ in str(surgery.inspect(model, example_inputs=inputs))
    flops = layer.kind.flops(layer)
    assert flops is None or flops >= 0
