"""Names of params follow from what takes what, not from how it is written."""

import pytest
import torch
from torch import nn

import surgery
from tests.laws.strategies import randomise_added

RULES = """
method fusion(f: block, g: block) { match y = module(x) param w[1] = 1 y += w * f(x) + g(y) }
method twice(f: block) { match y = module(x) y += f(f(x)) }
method both(m: method) { match y = module(x) apply m apply m }
method two() { match y = linear(x) apply lora(1) apply lora(2) }
method own() { match y = module(x) let f = adapter(2) let g = adapter(3) y += f(x) + g(y) }
method learned(m: method) {
  match y = module(x)
  param s[1] = 1
  let base = y
  apply m
  y = base + s * (y - base)
}
block sums(f: block, g: block = adapter(2)) of h[*, d] { return f(h) + g(h) }
let big = adapter(3)
"""
BLOCK = ("D", "d0", "U", "u0")
X = torch.randn(2, 3, 4)


def adapted(spec: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4))
    surgery.apply(model, RULES + f"on Linear {spec}", example_inputs=X, seed=0)
    return randomise_added(model)


def names(*parts: str) -> list[str]:
    """`f.*` stands for the params of a block at `f.`."""
    whole = [p.replace("*", leaf) for p in parts for leaf in (BLOCK if "*" in p else ("",))]
    return [f"0.{name}" for name in whole]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gated lora(2)", ("lora.gated.w", "lora.gated.c", "lora.A", "lora.B")),
        ("fusion(adapter(2), adapter(3))", ("fusion.w", "fusion.f.*", "fusion.g.*")),
        ("fusion(adapter(2)) adapter(3)", ("fusion.w", "fusion.f.*", "fusion.g.*")),
        ("fusion(g = adapter(2)) adapter(3)", ("fusion.w", "fusion.f.*", "fusion.g.*")),
        (
            "learned fusion(adapter(2), big)",
            ("fusion.learned.s", "fusion.w", "fusion.f.*", "fusion.g.*"),
        ),
        ("twice adapter(2)", ("adapter.*",)),
        ("parallel(adapter(2))", ("adapter.*",)),
        ("parallel big", ("adapter.*",)),
        ("apply own", ("own.f.*", "own.g.*")),
        ("parallel sums adapter(3)", ("adapter.*", "adapter.sums.g.*")),
        ("apply two", ("two.lora.A", "two.lora.B", "two.lora_2.A", "two.lora_2.B")),
        ("both lora(2)", ("lora.A", "lora.B")),
        ("scaled(2) scaled(3) lora(2)", ("lora.A", "lora.B")),
        (
            "learned layer_gated learned lora(2) as low",
            (
                "low.learned_2.s",
                "low.layer_gated.w",
                "low.layer_gated.c",
                "low.learned.s",
                "low.A",
                "low.B",
            ),
        ),
    ],
)
def test_names(spec: str, expected: tuple[str, ...], tmp_path) -> None:
    """They are those of the saved file, which loads again."""
    model = adapted(spec)
    assert sorted(surgery.trainable(model)) == sorted(names(*expected))
    output = model(X)
    surgery.save(model, tmp_path / "adapter")
    surgery.remove(model)
    surgery.load(model, tmp_path / "adapter", example_inputs=X)
    assert torch.equal(model(X), output)


def test_a_method_used_twice_has_the_same_params_twice() -> None:
    model = adapted("both lora(2)")
    graft, layer = model[0].lora, model[0]
    base = nn.functional.linear(X, layer.weight, layer.bias)
    torch.testing.assert_close(model(X), base + 2 * X @ graft.A.t() @ graft.B.t())
    with surgery.merged(model):
        torch.testing.assert_close(model(X), base + 2 * X @ graft.A.t() @ graft.B.t())


def test_a_block_used_twice_has_the_same_params_twice() -> None:
    model = adapted("twice adapter(2, act = tanh)")
    graft, layer = model[0].adapter, model[0]

    def block(h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(h @ graft.D.t() + graft.d0) @ graft.U.t() + graft.u0

    base = nn.functional.linear(X, layer.weight, layer.bias)
    torch.testing.assert_close(model(X), base + block(block(X)))


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        ("f(y) + linear(f(linear(y, A)), B)", "S405"),
        ("linear(f(linear(y, A)), B) + linear(f(linear(y, C)), E)", "S271"),
    ],
)
def test_one_block_of_two_sizes_is_refused(inner: str, code: str) -> None:
    spec = (
        "method odd(f: block) { match y[*, n] = linear(x[*, m], W[n, m], b?) param A[3, n] = 1 "
        "param B[n, 3] = 1 param C[4, n] = 1 param E[n, 4] = 1 "
        f"y += {inner} + linear(linear(y, C), E) }} on Linear odd adapter(2)"
    )
    with pytest.raises(surgery.SurgeryError, match=rf"{code}[\s\S]*used twice"):
        surgery.plan(nn.Sequential(nn.Linear(5, 5)), spec)
