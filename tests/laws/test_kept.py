"""A value kept between forwards depends on its sources alone, not on who asked for it first."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

import surgery
from tests.laws.strategies import Holder, randomise_added
from tests.models import randomise

METHODS = ("dora(2)", "loha(2)", "lokr(2, rows = 4, columns = 4)")


def adapted(method: str = "dora(2)", dtype: torch.dtype = torch.float32) -> Holder:
    model = randomise(Holder(nn.Linear(64, 64)), 1).to(dtype)
    surgery.apply(model, f"on `layer` apply {method}", seed=0)
    return randomise_added(model, std=0.1)


@torch.no_grad()
def plainly(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Doubling(torch.utils._python_dispatch.TorchDispatchMode):
    """Gives twice every product of matrices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if "mm" in str(func) else result


AROUND: dict[str, Callable[[], object]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "forward-mode differentiation": forward_ad.dual_level,
    "another default device": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "a dispatch mode": Doubling,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_a_forward_is_not_kept(around: str, method: str) -> None:
    model, fresh, x = adapted(method), adapted(method), torch.randn(3, 64)
    with AROUND[around](), torch.no_grad():
        inside = model(x)
    after = plainly(model, x)
    assert torch.equal(after, plainly(fresh, x))
    with AROUND[around](), torch.no_grad():
        assert torch.equal(model(x), inside)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap over parameters"])
def test_transforms_keep_nothing(transform: str, method: str) -> None:
    model, x = adapted(method), torch.randn(3, 64)
    before = plainly(adapted(method), x)
    stacks = {n: torch.stack([p.detach(), 2 * p.detach()]) for n, p in model.named_parameters()}
    with torch.no_grad():
        match transform:
            case "vmap":
                torch.testing.assert_close(vmap(model)(x), before)
            case "grad":
                grad(lambda x: model(x).sum())(x)
            case _:
                found = vmap(lambda p: functional_call(model, p, (x,)))(stacks)
                torch.testing.assert_close(found[0], before)
    assert torch.equal(plainly(model, x), before)


def test_kept_in_inference_mode_and_used_where_gradients_are_recorded() -> None:
    model, x = adapted(), torch.randn(3, 64, requires_grad=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_is_what_is_kept_under_autocast(method: str) -> None:
    model, x = adapted(method), torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        trained = model(x)
        assert torch.equal(trained, plainly(model, x))


@pytest.mark.parametrize("method", METHODS)
def test_wide_adapters_on_a_narrow_base_under_autocast(method: str) -> None:
    model = adapted(method, torch.bfloat16)
    for parameter in surgery.trainable(model).values():
        parameter.data = parameter.data.float()
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        trained = model(x)
        trained.float().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(x), trained)
    assert all(p.grad.isfinite().all() for p in surgery.trainable(model).values())


def test_a_view_of_the_same_memory_is_another_source() -> None:
    model, x = adapted(), torch.randn(3, 64)
    with torch.no_grad():
        model(x)
        turned = {"layer.weight": model.layer.weight.t()}
        found = functional_call(model, turned, (x,))
        other = copy.deepcopy(model)
        other.layer.weight.copy_(turned["layer.weight"].clone())
        torch.testing.assert_close(found, other(x))
