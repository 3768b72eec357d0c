"""Layers of complex numbers: new parameters are complex, or the method is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import surgery
from surgery.rules.primitives import PRIMITIVES
from tests.laws.strategies import randomise_added

DTYPES = (torch.complex64, torch.complex128)
METHODS = ("apply lora(2)", "apply ia3", "apply loha(2)", "sequential adapter(3, act = tanh)")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_new_parameters_are_complex(method: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 5, dtype=dtype), nn.Linear(5, 4, dtype=dtype))
    x = torch.randn(3, 4, dtype=dtype)
    expected = model(x)
    surgery.apply(model, f"on Linear {method}", seed=0)
    torch.testing.assert_close(model(x), expected)
    assert {p.dtype for p in surgery.trainable(model).values()} == {dtype}
    randomise_added(model)
    assert not torch.allclose(model(x), expected)
    model(x).abs().sum().backward()
    assert all(p.grad is not None for p in surgery.trainable(model).values())
    surgery.remove(model)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("method", ["sequential adapter(3)", "apply lora(2, dropout = 0.1)"])
def test_what_complex_numbers_have_not_is_an_error(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex128))
    with pytest.raises(
        surgery.SurgeryError, match=r"S440[\s\S]*complex numbers, of which there is"
    ):
        surgery.apply(model, f"on Linear {method}", seed=0)
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]


OF_ONE = [n for n, p in PRIMITIVES.items() if p.arity == (1, 1) and p.form != "dims"]


@pytest.mark.parametrize("name", OF_ONE)
def test_functions_of_complex_numbers(name: str) -> None:
    """Each that torch does not compute is known as one of real numbers."""
    home, _, called = PRIMITIVES[name].torch.rpartition(".")
    function = getattr(
        {"torch.nn.functional": nn.functional, "torch": torch}.get(home), called, None
    )
    if function is None:
        pytest.skip("not a function of torch")
    arguments = {"dim": 0} if PRIMITIVES[name].axis else {}
    x = torch.randn(2, 2, dtype=torch.complex64)
    try:
        stays = function(x, **arguments).is_complex()
    except (RuntimeError, NotImplementedError):
        stays = False
    assert stays != PRIMITIVES[name].real


LAYERS = {
    "linear": lambda: (nn.Linear(4, 6, dtype=torch.complex128), (3, 4)),
    "convolution": lambda: (nn.Conv1d(4, 6, 3, padding=1, dtype=torch.complex128), (2, 4, 7)),
    "groups": lambda: (nn.Conv2d(4, 6, 3, groups=2, dtype=torch.complex128), (2, 4, 5, 5)),
    "transposed": lambda: (
        nn.ConvTranspose1d(4, 6, 3, stride=2, dtype=torch.complex128),
        (2, 4, 7),
    ),
}
RULES = ("lora(2)", "dora(2)", "vera(2)", "loha(2)", "ia3", "shift", "lora(2) on all apply ia3")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", LAYERS)
def test_complex_layers_merge(kind: str, rule: str) -> None:
    """What is merged computes what the adapted layer did, and can be taken back."""
    layer, shape = LAYERS[kind]()
    model = nn.Sequential(layer)
    x = torch.randn(shape, dtype=torch.complex128)
    before = {name: p.clone() for name, p in model.named_parameters()}
    spec = f"on `0` apply {rule}".replace("all", "`0`")
    surgery.apply(model, spec, example_inputs=x, seed=0)
    randomise_added(model)
    adapted = model(x)
    with surgery.disabled(model):
        assert not torch.allclose(model(x), adapted)
    with surgery.merged(model):
        torch.testing.assert_close(model(x), adapted)
    assert torch.equal(model(x), adapted)
    surgery.merge(model)
    torch.testing.assert_close(model(x), adapted)
    assert {name for name, _ in model.named_parameters()} == set(before)
    model = nn.Sequential(LAYERS[kind]()[0])
    kept = {name: p.clone() for name, p in model.named_parameters()}
    surgery.remove(surgery.apply(model, spec, example_inputs=x, seed=0))
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_complex_layers(kind: str) -> None:
    """Along a random direction the loss changes as its gradient says."""
    layer, shape = LAYERS[kind]()
    model = nn.Sequential(layer)
    x = torch.randn(shape, dtype=torch.complex128)
    surgery.apply(model, "on `0` apply lora(2)", example_inputs=x, seed=0)
    randomise_added(model)
    parameters = [*surgery.trainable(model).values()]
    along = [torch.randn_like(p) for p in parameters]

    def loss(step: float) -> torch.Tensor:
        moved = {n: p + step * d for (n, p), d in zip(named, along, strict=True)}
        return torch.func.functional_call(model, moved, (x,)).abs().square().sum()

    named = [*surgery.trainable(model).items()]
    gradients = torch.autograd.grad(loss(0), parameters)
    said = sum((g.conj() * d).real.sum() for g, d in zip(gradients, along, strict=True))
    found = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(found, said, rtol=1e-6, atol=1e-6)
