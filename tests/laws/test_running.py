"""What models live with: compilers, checkpoints, PyTorch's own shortcuts, modules used twice."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import surgery
from tests.laws.strategies import Holder, added, assert_state, randomise_added, state_of
from tests.models import randomise

# Torch makes new ones of its own functions while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6)),
    "transposed": (lambda: Conv1D(4, 6), (3, 5, 6)),
    "convolution": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2),
        (3, 4, 5, 6),
    ),
    "embedding": (lambda: nn.Embedding(7, 6), None),
}
METHODS = {
    "lora": "on `layer` apply lora(2)",
    "dora after ia3": "on `layer` apply ia3 on `layer` apply dora(2)",
    "vera": "on `layer` apply vera(3)",
    "loha, adapter": "on `layer` apply loha(2) on `layer` sequential adapter(2)",
    "lokr, ia3_input": "on `layer` apply lokr(2) on `layer` apply ia3_input",
}


def input_of(layer: str, batch: int) -> Tensor:
    shape = LAYERS[layer][1]
    generator = torch.Generator().manual_seed(batch)
    if shape is None:
        return torch.randint(7, (batch, 5), generator=generator)
    return torch.randn(batch, *shape[1:], generator=generator)


def adapted(layer: str, method: str) -> nn.Module:
    model = randomise(Holder(LAYERS[layer][0]()), 1)
    return randomise_added(surgery.apply(model, METHODS[method], seed=0))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert left
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_compiles_whole_with_dynamic_shapes(layer: str, method: str) -> None:
    model = adapted(layer, method)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 2):
        x = input_of(layer, batch)
        for runs in (model, compiled):
            with torch.no_grad():
                torch.testing.assert_close(runs(x), model(x), rtol=1e-5, atol=1e-5)
        expected = model(x)
        expected.square().sum().backward()
        plain = gradients(model)
        output = compiled(x)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        output.square().sum().backward()
        same(gradients(model), plain)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole(backend: str) -> None:
    model = adapted("linear", "lora")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch in (3, 2):
        x = input_of("linear", batch)
        compiled(x).square().sum().backward()
        found = gradients(model)
        model(x).square().sum().backward()
        same(found, gradients(model))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", [*METHODS, "dropped"])
def test_checkpoints_give_the_same_gradients(method: str, reentrant: bool) -> None:
    spec = METHODS.get(method, "on `layer` apply lora(2, dropout = 0.5)")
    model = randomise(Holder(nn.Linear(6, 4)), 1).train()
    randomise_added(surgery.apply(model, spec, seed=0))
    x = input_of("linear", 3).requires_grad_()
    torch.manual_seed(3)
    expected = model(x)
    expected.square().sum().backward()
    plain, to_input = gradients(model), x.grad.clone()
    x.grad = None
    torch.manual_seed(3)
    output = checkpoint(model, x, use_reentrant=reentrant)
    assert torch.equal(output, expected)
    output.square().sum().backward()
    same(gradients(model), plain)
    torch.testing.assert_close(x.grad, to_input)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "method", ["lora(2)", "dora(2)", "ia3", "ia3_input", "shift", "vera(3)", "loha(2)", "lokr(2)"]
)
def test_attention_reads_the_adapted_weight_of_its_projection(
    method: str, batch_first: bool
) -> None:
    """`nn.MultiheadAttention` never calls `out_proj`; the reference has the merged weight in it."""
    model = randomise(nn.MultiheadAttention(8, 2, batch_first=batch_first), 1).eval()
    x = torch.randn(3, 5, 8)
    before = state_of(model)
    base = model(x, x, x)[0]
    surgery.apply(model, f"on `out_proj` apply {method} as new on `out_proj` apply shift", seed=0)
    randomise_added(model)
    output = model(x, x, x)[0]
    assert not torch.allclose(output, base)
    output.square().sum().backward()
    for name, parameter in added(model).items():
        assert not parameter.requires_grad or parameter.grad.any(), name
    again = copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x, x, x, need_weights=False)[0], output)
        assert torch.equal(again(x, x, x)[0], model(x, x, x)[0])
        with surgery.merged(model):
            torch.testing.assert_close(model(x, x, x)[0], output)
        torch.testing.assert_close(model(x, x, x)[0], output)
    surgery.remove(model)
    assert torch.equal(model(x, x, x)[0], base)
    assert_state(model, before)


@pytest.mark.parametrize("method", ["apply lora(2, dropout = 0.5)", "sequential adapter(2)"])
def test_what_has_no_weight_acts_on_the_product_of_that_projection(method: str) -> None:
    """Whatever does not merge is done where `nn.MultiheadAttention` multiplies with the weight."""
    model = randomise(nn.MultiheadAttention(8, 2, batch_first=True), 1)
    x = torch.randn(3, 5, 8)
    surgery.apply(model, f"on `out_proj` {method}", seed=0)
    randomise_added(model)
    with torch.no_grad():
        outputs = [model.train(mode)(x, x, x)[0] for mode in (True, True, False, False)]
        dropped = "dropout" in method
        assert torch.equal(outputs[0], outputs[1]) != dropped
        assert torch.equal(outputs[2], outputs[3])
        with surgery.disabled(model):
            assert not torch.allclose(model(x, x, x)[0], outputs[2])
    model(x, x, x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in surgery.trainable(model).values())


def test_a_module_used_twice_gathers_both_gradients() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    model = randomise(Twice(), 1).double()
    surgery.apply(model, "on `first` apply lora(2)", seed=0)
    randomise_added(model)
    x = torch.randn(3, 4, dtype=torch.float64)
    model(x).sum().backward()
    found = gradients(model)
    A, B = (model.first.lora.get_parameter(n) for n in "AB")

    def reference(x: Tensor) -> Tensor:
        return nn.functional.linear(x, model.first.weight + B @ A, model.first.bias)

    output = reference(torch.tanh(reference(x)))
    torch.testing.assert_close(model(x), output)
    output.sum().backward()
    names = {"first.lora.A": A, "first.lora.B": B}
    assert found.keys() == names.keys()
    for name, parameter in names.items():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_gate_is_a_mean_over_places(groups: int) -> None:
    """On a convolution, places come last, and each group has a gate of its own."""
    model = randomise(Holder(nn.Conv1d(4, 6, 3, groups=groups)), 1)
    x = torch.randn(2, 4, 7)
    surgery.apply(model, "on `layer` gated lora(2)", example_inputs=x, seed=0)
    graft = randomise_added(model).layer.lora
    convolve = nn.functional.conv1d
    outputs = []
    for part, weight, bias, up in zip(
        *(t.chunk(groups, d) for t, d in ((x, 1), (model.layer.weight, 0), (model.layer.bias, 0))),
        graft.B.chunk(groups),
        strict=True,
    ):
        scores = convolve(part, graft.gated.w.view(1, -1, 3), graft.gated.c)
        hidden = convolve(part, graft.A.view(2, -1, 3))
        gate = torch.sigmoid(scores).mean(2, keepdim=True)
        outputs.append(convolve(part, weight, bias) + gate * convolve(hidden, up.unsqueeze(2)))
    torch.testing.assert_close(model(x), torch.cat(outputs, 1))
