"""Rules as a plain interpreter runs them (see tests/fuzz/plain_rules.py), on each kind of layer."""

import warnings

import pytest
import torch
from torch import fx, nn

import surgery
from tests.fuzz.fuzz_rules import attempt
from tests.fuzz.plain_rules import layer_of
from tests.laws.strategies import Holder, randomise_added
from tests.models import build, randomise

LAYERS = {
    "linear": (lambda: nn.Linear(4, 4), (3, 4)),
    "without bias": (lambda: nn.Linear(4, 4, bias=False), (3, 4)),
    "convolution": (lambda: nn.Conv1d(2, 4, 2), (2, 2, 5)),
    "grouped": (lambda: nn.Conv2d(4, 4, (2, 1), groups=2, stride=2, padding=1), (2, 4, 5, 4)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4, dilation=2), (1, 4, 7)),
    "embedding": (lambda: nn.Embedding(4, 4), None),
}
RULES = {
    "a product before the weight": "param R[n, n] ~ normal(std = 1)  W = R @ W",
    "hidden features as many as outputs": (
        "param A[n, m] ~ normal(std = 1)  param C[n, n] ~ normal(std = 1)  y += linear(x, C @ A)"
    ),
    "the same in two steps": (
        "param A[n, m] ~ normal(std = 1)  param C[n, n] ~ normal(std = 1)\n"
        "y += linear(linear(x, A), C)"
    ),
    "dropout of a param": (
        "param A[2, m] ~ normal(std = 1)  param B[n, 2] = 0\n"
        "y += linear(linear(x, dropout(A, 0.1)), B)"
    ),
    "dropout of the weight": "param s[n] = 1  y = s * linear(x, dropout(W, 0.5)) + b",
    "through one feature": (
        "param A[1, m] ~ normal(std = 1)  param B[n, 1] = 0  param v[3] = 1  param C[n, 3] = 0\n"
        "y += linear(linear(x, A), B) + linear(linear(x, A) + v, C)"
    ),
    "one feature for all outputs": "param A[1, m] ~ normal(std = 1)  y = linear(x, A) + b",
    "one feature of outputs for all": "param A[1, n] ~ normal(std = 1)  y += linear(y, A)",
    "a number before a product": "param A[n, m] ~ normal(std = 1)  y += linear(x + 1, A)",
    "a bias in products": (
        "param C[n, n] ~ normal(std = 1)  param v[n] = 1  y += linear(b, C) + v * b * y + v"
    ),
    "nothing left of the input": "param c[n] = 1  y = c",
    "an operand that is a constant": "param c[m] = 1  x = c",
    "the weight taken away": "param c[n] = 1  W -= W  y += c",
    "one scale": "param s[1] = 1  y = s * y",
    "a weight of one row": "param w[m] = 1  W = w",
    "a bias of one element": "param c[1] = 1  b = c",
    "a constant under a function": (
        "param c[n] = 1  y += c * sigmoid(1) + softmax(y - y, over = n)"
    ),
    "means over features": "param w[1, m] = 1  y += mean(linear(x, W + w), over = n)",
    "a gate for each group": (
        "param w[1, m] ~ normal(std = 1)  param g[n] = 0  y += sigmoid(linear(x, w)) * g * y"
    ),
    "outputs that a hidden part reads": (
        "param A[2, m] ~ normal(std = 1)  param D[2, n] ~ normal(std = 1)  param B[n, 2] = 1\n"
        "y += linear(linear(x, A) + linear(y, D), B)"
    ),
    "softmax of hidden features": (
        "param A[3, m] ~ normal(std = 1)  param B[n, 3] = 1\n"
        "y += linear(softmax(linear(x, A), over = 3) * mean(linear(x, A), over = 3), B)"
    ),
    "detached on its way": (
        "param g[m] = 1  param A[2, m] = 1  param B[n, 2] = 1\n"
        "x = detach(g * x) + g * x  y += linear(linear(detach(x), A), B)"
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_rule_computes_what_it_says(kind: str, rule: str) -> None:
    """Outputs, gradients, the start, the merge and removal, against torch written out."""
    make, shape = LAYERS[kind]
    layer = randomise(make()).double()
    x = torch.tensor([[0, 3, 1]]) if shape is None else torch.randn(shape).double()
    spec = (
        "method rule() {\n  match y[*, n] = linear(x[*, m], W[n, m], b?)\n"
        f"  {RULES[rule]}\n}}\non `layer` apply rule as m0"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        label = attempt(Holder(layer).eval(), layer_of(layer), x, spec, kind)
    if layer_of(layer).bias is None and "(b, C)" in RULES[rule]:
        assert label == "refused: S225 rightly"
    else:
        assert label.startswith("applied"), label


class Attention(nn.Module):
    """Torch's own attention, which reads the weights of its projections itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


HOSTS = {
    "packed": (Attention, (2, 3, 4), "q|v"),
    "read": (Attention, (2, 3, 4), "`out_proj`"),
    "traced": (
        lambda: fx.symbolic_trace(nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.Tanh())),
        (2, 4, 5),
        "`0`",
    ),
    "three dims": (lambda: Holder(nn.Conv3d(4, 4, (2, 1, 2), groups=2)), (4, 3, 3, 4), "`layer`"),
    "experts": (lambda: build("mixtral"), None, "experts"),
}
TOGETHER = (
    "a product before the weight",
    "hidden features as many as outputs",
    "one feature for all outputs",
    "a weight of one row",
    "one scale",
)


@pytest.mark.parametrize("rule", TOGETHER)
@pytest.mark.parametrize("host", HOSTS)
def test_a_rule_merges_to_what_it_computes_on_every_host(host: str, rule: str) -> None:
    make, shape, place = HOSTS[host]
    model = make().eval() if shape is None else randomise(make()).double().eval()
    x = torch.arange(6).unsqueeze(0) if shape is None else torch.randn(shape).double()
    spec = (
        "method rule() { match y[*, n] = linear(x[*, m], W[n, m], b?) "
        f"{RULES[rule].removesuffix(' + b')} }} on {place} apply rule"
    )
    surgery.apply(model, spec, example_inputs=x, seed=0)
    randomise_added(model)

    def run() -> torch.Tensor:
        with torch.no_grad():
            result = model(x)
        return result if isinstance(result, torch.Tensor) else result.logits

    adapted = run()
    with surgery.merged(model):
        torch.testing.assert_close(run(), adapted, rtol=1e-4, atol=1e-4)
    model(x)


SCALED = "method scaled() { match y[*, n] = linear(x, W, b?) param s[1] = 1 y = s * y }"


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_one_number_scales_a_slice(name: str) -> None:
    model = build(name)
    ids = torch.arange(6).unsqueeze(0)
    base = model(ids).logits
    surgery.apply(model, f"{SCALED} on q|v apply scaled", seed=0)
    assert torch.equal(model(ids).logits, base)
    adapted = randomise_added(model)(ids).logits
    assert not torch.allclose(adapted, base)
    with surgery.merged(model):
        torch.testing.assert_close(model(ids).logits, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_runs_in_each_dtype(rule: str, dtype: torch.dtype) -> None:
    layer = randomise(nn.Linear(4, 4))
    spec = (
        "method rule() { match y[*, n] = linear(x[*, m], W[n, m], b?) "
        f"{RULES[rule]} }} on `layer` apply rule"
    )
    model, x = Holder(layer).to(dtype).eval(), torch.randn(3, 4, dtype=dtype)
    surgery.apply(model, spec, seed=0)
    output = model(x)
    assert output.dtype == dtype
    output.sum().backward()
    with surgery.merged(model):
        assert model(x).dtype == dtype
