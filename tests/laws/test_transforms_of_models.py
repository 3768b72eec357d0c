"""`torch.func` and `torch.jit.trace` of models whose modules pass values to each other."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import surgery
from tests.laws.test_threads import CASES, adapted, inputs, tensors_left

# Torch compiles functions of its own for forward-mode differentiation.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Parameters = dict[str, Tensor]
Given = dict[str, Any]


@pytest.fixture(autouse=True)
def differentiable() -> Any:
    """The attention that forward-mode differentiation knows."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def gradients(model: nn.Module, given: Given) -> Parameters:
    parameters = surgery.trainable(model)
    loss = model(**given)[0].square().mean()
    found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 3, 5, 6, 7, 10)])
def test_transforms(name: str, spec: str) -> None:
    """Of parameters, of states, of examples, forward and reverse; and nothing stays behind."""
    model, given = adapted(name, spec), inputs(name, spec, 1)
    given |= {} if name == "bert" else {"use_cache": False}
    parameters = {n: p.detach() for n, p in surgery.trainable(model).items()}
    tangents = {n: torch.randn_like(p) for n, p in parameters.items()}
    moved = {n: p + 0.3 * tangents[n] for n, p in parameters.items()}

    def run(own: Parameters, given: Given = given) -> Tensor:
        return functional_call(model, own, (), dict(given))[0]

    def loss(own: Parameters, given: Given = given) -> Tensor:
        return run(own, given).square().mean()

    expected = gradients(model, given)
    for key, found in grad(loss)(parameters).items():
        close(found, expected[key])
    slope = jvp(loss, (parameters,), (tangents,))[1]
    close(slope, sum((g * tangents[n]).sum() for n, g in expected.items()))  # type: ignore[arg-type]
    both = vmap(run)({n: torch.stack([parameters[n], moved[n]]) for n in parameters})
    close(both[0], run(parameters))
    close(both[1], run(moved))

    table, key = model.get_input_embeddings(), "inputs_embeds"
    others = {k: v for k, v in given.items() if k != "input_ids"}
    states = table(given["input_ids"]).detach()
    found = vmap(lambda x: run(parameters, {**others, key: x}))(torch.stack([states, 2 * states]))
    for one, factor in zip(found, (1, 2), strict=True):
        close(one, model(**others, **{key: factor * states})[0])

    shown = {k: v for k, v in given.items() if "mask" not in k}
    rows = {k: v[:, None] for k, v in shown.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in shown.items() if k not in rows}
    each = vmap(lambda row: grad(loss)(parameters, {**row, **settings}))(rows)
    for row in (0, 1):
        alone = gradients(model, {k: v[row] for k, v in rows.items()} | settings)
        for part, found in each.items():
            close(found[row], alone[part])
    gc.collect()
    assert not tensors_left(model)


@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 3, 5)])
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_traced_models(name: str, spec: str) -> None:
    model, given = adapted(name, spec), inputs(name, spec, 1)
    settings = {} if name == "bert" else {"use_cache": False}

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Tensor) -> Tensor:
            return self.model(**dict(zip(given, args, strict=True)), **settings)[0]

    traced: Any = torch.jit.trace(Around(), tuple(given.values()), check_trace=False)
    for factor in (1, -1):
        turned = {k: v if factor > 0 else v.flip(0) for k, v in given.items()}
        close(traced(*turned.values()), model(**turned, **settings)[0])
