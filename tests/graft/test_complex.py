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


@pytest.mark.parametrize("name", [n for n, p in PRIMITIVES.items() if p.arity == (1, 1)])
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
