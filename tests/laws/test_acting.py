"""A parameter whose derivative is zero by structure is an error, and no other is."""

import pytest
import torch
from torch import nn

import surgery
from surgery.planning.spec import read_spec
from tests.models import build

HEAD = "match y[*, n] = linear(x[*, m], W[n, m], b?)"


def rule(body: str, head: str = HEAD) -> str:
    return f"method rule(gate = 1, r = 2) {{ {head} {body} }} "


KNOWN = {
    "a scale of 0": "on Linear apply lora(2, alpha = 0)",
    "a gate of 0": "on Linear apply dora(2) on Linear scaled(0) loha(2)",
    "a gate of 0 behind a verb": "on `0` scaled(0) parallel adapter(2)",
    "detached": rule("param v[n] = 1 y += detach(v)") + "on Linear apply rule",
    "taken from itself": rule("param v[n] = 1 y += v * y - y * v") + "on Linear apply rule",
    "terms that cancel": rule("param v[n] = 1 y += 2 * v - v - v") + "on Linear apply rule",
    "products that cancel": (
        rule("param A[n, m] = 1 y += linear(x, A) + linear(x, -A)") + "on Linear apply rule"
    ),
    "divided by itself": rule("param v[n] = 1 y = y * (v / v)") + "on Linear apply rule",
    "a softmax of one": (
        rule("param w[1, n] = 0 y = y * softmax(linear(y, w), over = 1)") + "on Linear apply rule"
    ),
    "the sum of a softmax": (
        rule("param v[n] = 0 y = y * sum(softmax(v, over = n), over = n)") + "on Linear apply rule"
    ),
    "replaced": rule("param v[n] = 1 y = v * y y = linear(x, W)") + "on Linear apply rule",
    "a gate that the method has no use for": (
        rule("param v[n] = 1 y += v")
        + "method opened(m: method) { match y = linear(x[*, d]) param w[1, d] = 0 "
        "apply m(gate = linear(x, w)) } on Linear opened rule"
    ),
    "replaced by another method": (
        "on Linear apply lora(2) "
        + rule("param A[n, m] = 1 W = A y = linear(x, A)")
        + "on Linear apply rule"
    ),
    "frozen, and never read": (
        rule("param frozen v[n] = 1 param w[n] = 1 y += 0 * v + w") + "on Linear apply rule"
    ),
}
CHECKED = [name for name in KNOWN if "another method" not in name and "verb" not in name]


@pytest.mark.parametrize("name", KNOWN)
def test_what_can_never_act_is_an_error_of_the_plan(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(surgery.SurgeryError) as raised:
        surgery.plan(model, KNOWN[name], example_inputs=torch.randn(2, 4))
    (diagnostic,) = {d.code: d for d in raised.value.diagnostics}.values()
    assert diagnostic.code in ("S224", "S225")
    assert diagnostic.labels


@pytest.mark.parametrize("name", CHECKED)
def test_where_no_model_is_needed_to_know_the_check_knows(name: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=r"S22[45]"):
        read_spec(KNOWN[name])


BIASED = rule("param v[n] = 1 y += b * v") + "on Linear apply rule"
NARROW = rule("param v[n] = 1 y += (n - 4) * v") + "on Linear apply rule"


def test_what_acts_at_some_sites_is_an_error_at_the_others() -> None:
    read_spec(BIASED)
    read_spec(NARROW)
    surgery.plan(nn.Sequential(nn.Linear(4, 5)), BIASED)
    surgery.plan(nn.Sequential(nn.Linear(4, 5)), NARROW)
    with pytest.raises(surgery.SurgeryError, match=r"S225[\s\S]*`b` is 0 here"):
        surgery.plan(nn.Sequential(nn.Linear(4, 5, bias=False)), BIASED)
    with pytest.raises(surgery.SurgeryError, match="S225"):
        surgery.plan(nn.Sequential(nn.Linear(4, 4)), NARROW)


def test_slices_cores_and_tokens_are_held_to_it() -> None:
    model = build("gpt2")
    for spec in (
        "on q|v apply lora(2, alpha = 0)",
        "on attention scaled(0) prefix(2)",
        "on mlp scaled(0) parallel adapter(2)",
        "method none(n) { match e[z, s, d] = tokens() param P[n, d] = 0 param v[n, d] = 1 "
        "e = cat(P + (n - 2) * v, e, along = s) } on tokens apply none(2)",
    ):
        with pytest.raises(surgery.SurgeryError, match="S225"):
            surgery.plan(model, spec)


FINE = (
    "on Linear apply lora(2)",
    "on Linear apply lora(2, dropout = 0.5)",
    "on Linear apply dora(2)",
    "on Linear apply vera(2, d = 0)",
    "on Linear apply lora(2) on Linear apply ia3 on Linear apply dora(1)",
    rule("param v[n] = 1 y += v - detach(v)") + "on Linear apply rule",
    rule("param v[n] = 0 param w[n] = 0 y += v * w * y") + "on Linear apply rule",
    rule("param frozen A[r, m] = 0 param B[n, r] = 0 y += linear(linear(x, A), B)")
    + "on Linear apply rule",
)


@pytest.mark.parametrize("spec", FINE)
def test_a_derivative_that_is_zero_at_the_start_alone_is_none_of_it(spec: str) -> None:
    read_spec(spec)
    surgery.plan(nn.Sequential(nn.Linear(4, 4)), spec)
