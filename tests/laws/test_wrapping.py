"""Verbs scale whatever a method changes: y = base + g · (y - base), on each kind of layer and host."""

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.laws.strategies import Holder, assert_near, randomise_added
from tests.models import build, randomise

LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (2, 3, 4)),
    "without bias": (lambda: nn.Linear(4, 6, bias=False), (2, 3, 4)),
    "convolution": (lambda: nn.Conv1d(4, 6, 2), (2, 4, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, (2, 1), groups=2, padding=1), (2, 4, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 2), (2, 4, 5)),
    "embedding": (lambda: nn.Embedding(4, 6), None),
}
METHODS = (
    "lora(2, alpha = 3)",
    "dora(2, alpha = 1)",
    "loha(1)",
    "lokr(1)",
    "vera(2)",
    "ia3",
    "ia3_input",
    "shift",
    "sequential adapter(2)",
    "scaled(3) dora(1)",
)


def adapted(make, shape, spec: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomise(Holder(make())).double().eval()
    x = torch.tensor([[0, 3, 1], [2, 2, 1]]) if shape is None else torch.randn(shape).double()
    surgery.apply(model, spec, example_inputs=x, seed=0)
    return randomise_added(model), x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_scaled_method_is_between_the_base_and_the_method(kind: str, method: str) -> None:
    """Outputs and gradients; the merge; off at 0, though nothing can be applied so."""
    make, shape = LAYERS[kind]
    spec = f"on `layer` {{}} {method} as it"
    (plain, x), (half, _) = (
        adapted(make, shape, spec.format(v)) for v in ("apply", "scaled(0.25)")
    )
    half.load_state_dict(plain.state_dict())
    with surgery.disabled(plain):
        base = plain(x)
    full = plain(x)
    assert not torch.allclose(full, base)
    expected = base + 0.25 * (full - base)
    actual = half(x)
    assert_near(actual, expected, torch.float64)
    probe = torch.randn_like(expected)
    for model, result in ((plain, expected), (half, actual)):
        model.zero_grad()
        (result * probe).sum().backward()
    for one, other in zip(plain.parameters(), half.parameters(), strict=True):
        if one.grad is not None:
            assert_near(other.grad, one.grad, torch.float64)
    if "adapter" not in method:
        with surgery.merged(half):
            assert_near(half(x), expected, torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_gate_is_of_whatever_a_method_changes(kind: str, method: str) -> None:
    make, shape = LAYERS[kind]
    spec = f"on `layer` {{}} {method} as it"
    (plain, x), (gated, _) = (adapted(make, shape, spec.format(v)) for v in ("apply", "gated"))
    gate = gated.layer.get_submodule("it.gated")
    gated.load_state_dict({**gated.state_dict(), **plain.state_dict()})
    with surgery.disabled(plain):
        base = plain(x)
    if kind == "linear":
        g = torch.sigmoid(x @ gate.w.t() + gate.c).mean(1, keepdim=True)
    else:
        weight = gate.w.view(1, 4, 2)
        g = torch.sigmoid(torch.conv1d(x, weight, gate.c)).mean(2, keepdim=True)
    assert_near(gated(x), base + g * (plain(x) - base), torch.float64)


def rule(last: str) -> str:
    """A verb that scales what a method changes by a learned number, in the words of ``last``."""
    return (
        "method wrap(m: method) { match y = module(x) param s[1] = 0.25 "
        f"let base = y apply m {last} }} "
    )


WORDS = (
    "y = base + s * (y - base)",
    "y = (y - base) * s + base",
    "y = (1 - s) * base + s * y",
    "y = y - (1 - s) * (y - base)",
    "let g = s y = base - g * (base - y)",
)
PLACES = {
    "attention": "prefix(2)",
    "mlp": "parallel adapter(2)",
    "q|v": "dora(2)",
    "o": "ia3_input",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("last", WORDS)
def test_it_may_be_said_in_any_words(last: str, place: str) -> None:
    """A factor of what a prefix adds is one of its keys and values."""
    method, ids = PLACES[place], torch.tensor([[3, 1, 4, 1, 5]])
    outputs = []
    for text in (f"{rule(last)} on {place} wrap {method}", f"on {place} scaled(0.25) {method}"):
        model = surgery.apply(build("gpt2"), text, seed=0)
        randomise_added(model)
        for name, parameter in model.named_parameters():
            if name.endswith("wrap.s"):
                torch.nn.init.constant_(parameter, 0.25)
        outputs.append(model(ids).logits)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_gate_scales_keys_and_values(name: str) -> None:
    """As UniPELT does: one gate, over the keys and over the values."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model = surgery.apply(build(name), "on attention apply prefix(2)", seed=0)
    scaled = surgery.apply(build(name), "on attention scaled(0.5) scaled(0.5) prefix(2)", seed=0)
    randomise_added(model)
    scaled.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.mul_(0.25)
    torch.testing.assert_close(scaled(ids)[0], model(ids)[0], rtol=1e-5, atol=1e-5)


def test_a_standing_prefix_is_not_scaled_by_a_later_gate() -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    spec = "on attention apply prefix(2) on attention {} prefix(1) as second"
    model = randomise_added(surgery.apply(build("gpt2"), spec.format("apply"), seed=0))
    other = surgery.apply(build("gpt2"), spec.format("scaled(0.5)"), seed=0)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in surgery.trainable(model).items():
            if "second" in name:
                parameter.mul_(0.5)
    torch.testing.assert_close(other(ids)[0], model(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (rule("y = base + relu(s * (y - base))") + "on attention wrap prefix(2)", "S270"),
        (rule("y = base + s * y") + "on attention wrap prefix(2)", "S270"),
        (rule("y = base + s") + "on attention wrap prefix(2)", "S225"),
        ("on attention dropped(0.5) prefix(2)", "S270"),
        (
            "method each(m: method) { match y = module(x[z, s, d]) param w[1, d] = 1 let base = y "
            "apply m y = base + linear(x, w) * (y - base) } on attention each prefix(2)",
            "S212",
        ),
        ("on q scaled(0) lora(2)", "S225"),
        ("on attention scaled(0) prefix(2)", "S225"),
        ("on tokens scaled(0.5) prompt(2)", "S401"),
    ],
)
def test_what_cannot_be_scaled_so_is_refused(spec: str, code: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.plan(build("gpt2"), spec)


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)", "ia3"])
def test_experts_take_scaled_methods(method: str) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model = surgery.apply(build("mixtral"), f"on experts scaled(0.5) {method}", seed=0)
    adapted = randomise_added(model)(ids).logits
    with surgery.merged(model):
        torch.testing.assert_close(model(ids).logits, adapted, rtol=1e-4, atol=1e-4)


def test_two_methods_with_and_without_a_gate_share_a_layer() -> None:
    """In each order; where both are named alike, the second needs a name."""
    layer, x = nn.Linear(4, 6), torch.randn(2, 3, 4)
    parts = ["on Linear gated lora(2)", "on Linear apply loha(1) as two", "on Linear gated dora(1)"]
    for spec in (" ".join(parts[1:] + parts[:1]), " ".join(parts[::-1]), " ".join(parts[:2])):
        model = surgery.apply(nn.Sequential(layer), spec, example_inputs=x, seed=0)
        assert randomise_added(model)(x).shape == (2, 3, 6)
        surgery.remove(model)
    with pytest.raises(surgery.SurgeryError, match=r"S407[\s\S]*as lora_2"):
        surgery.plan(nn.Sequential(layer), f"{parts[0]} on Linear apply lora(2)", example_inputs=x)


@pytest.mark.parametrize("order", [("q", "v", "qkv"), ("qkv", "q", "v"), ("v", "qkv", "q")])
def test_gates_on_slices_and_on_all_of_a_layer(order: tuple[str, ...]) -> None:
    methods = {"q": "gated lora(2)", "v": "apply lora(1)", "qkv": "gated ia3"}
    spec = " ".join(f"on {place} {methods[place]}" for place in order)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model = build("gpt2")
    base = model(ids).logits
    surgery.apply(model, spec, seed=0)
    assert torch.equal(model(ids).logits, base)
    assert not torch.allclose(randomise_added(model)(ids).logits, base)
