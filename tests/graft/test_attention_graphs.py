"""What is generated for attention: functions with nodes for keys, values, mask and the product."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from tests.graft.attending import in_front
from tests.laws.strategies import randomise_added
from tests.models import build

NEW, HEADS, GROUPS, FEATURES = 3, 4, 2, 8
SPEC = f"on attention apply prefix({NEW})"


def adapted(name: str, spec: str = SPEC) -> nn.Module:
    return randomise_added(surgery.apply(build(name), spec, seed=0))


def recipes(model: nn.Module) -> list[tuple[str, str]]:
    """The names and sources of all that was generated for ``model``."""
    classes: list[Any] = [type(module) for module in model.modules()]
    found = [cls.surgery_recipe for cls in classes if "surgery_recipe" in vars(cls)]
    return [(name, source) for recipe in found for name, source, _ in recipe.sources]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(["none", "causal", "bool", "float"]),
    st.sampled_from([None, 0.3]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_a_core_is_one_function_of_nodes(
    queries: int, keys: int, kind: str, scale: float | None, dtype: torch.dtype, named: bool
) -> None:
    """It gives what attention gives with the new keys and values in front, masked for no query."""
    module: Any = LLAMA.get_submodule("model.layers.0.self_attn")
    attend = type(module).surgery_functions["core0_attend"]
    new_k, new_v = torch.randn(2, 1, GROUPS, NEW, FEATURES, dtype=dtype)
    q = torch.randn(2, HEADS, queries, FEATURES, dtype=dtype)
    k, v = torch.randn(2, 2, GROUPS, keys, FEATURES, dtype=dtype)
    mask = {"bool": torch.rand(queries, keys) < 0.7, "float": torch.randn(2, 1, queries, keys)}
    given_mask = mask.get(kind)
    if given_mask is not None and given_mask.dtype != torch.bool:
        given_mask = given_mask.to(dtype)
    names = {"query": q, "key": k, "value": v}
    settings = {"attn_mask": given_mask, "is_causal": kind == "causal", "scale": scale}
    args = () if named else (q, k, v)
    found = attend(
        module, new_k, new_v, *args, **(names if named else {}), **settings, enable_gqa=True
    )
    bias = torch.zeros(queries, keys, dtype=dtype)
    if kind == "causal":
        bias = bias.masked_fill(torch.ones(queries, keys).tril() == 0, float("-inf"))
    elif given_mask is not None:
        hidden = given_mask.dtype == torch.bool
        bias = bias.masked_fill(~given_mask, float("-inf")) if hidden else given_mask
    bias = nn.functional.pad(bias, (NEW, 0))
    expected = nn.functional.scaled_dot_product_attention(
        q,
        in_front(new_k[0], k),
        in_front(new_v[0], v),
        bias,
        scale=scale,
        enable_gqa=True,
    )
    torch.testing.assert_close(found, expected)


LLAMA = adapted("llama")


@pytest.mark.parametrize("name", ["llama", "bert", "nanogpt", "encoder_layer"])
def test_keys_mask_and_product_are_named_in_it(name: str) -> None:
    sources = dict(recipes(adapted(name)))
    for call in ("scaled_dot_product_attention(", "masks_reveal(", "kernels_cat("):
        assert call in sources["core0_attend"]
    assert "kernels_cat(" in sources["core0_key"]
    assert "kernels_cat(" in sources["core0_value"]
    assert "prefix_k" in sources["core0_key"]


SPECS = [
    "on attention gated prefix(3)  on mlp gated parallel adapter(4)  on q|v apply lora(2)",
    "on attention gated prefix(3)",
    "on attention apply prefix(3) on attention apply prefix(2) as two",
    "on tokens apply prompt(3)  on attention apply prefix(2)",
    "on attention|mlp sequential adapter(4)",
    "on mlp parallel adapter(4)  on q|v apply lora(2)",
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_nothing_is_picked_that_nobody_reads(name: str, spec: str) -> None:
    """What a generated forward takes from arguments, results and attributes, it uses."""
    for function, source in recipes(adapted(name, spec)):
        for picked in unread(source) if function == "forward" else ():
            raise AssertionError(f"{picked} in\n{source}")


def unread(source: str) -> list[str]:
    """The names in ``source`` that hold a part of something, and are never read."""
    (function,) = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
    read = {n.id for n in names if isinstance(n.ctx, ast.Load)}
    return [
        target.id
        for statement in function.body
        if isinstance(statement, ast.Assign) and is_pick(statement.value)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id not in read
    ]


def is_pick(value: ast.expr) -> bool:
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id.endswith(("calls_take", "calls_first"))
    return isinstance(value, ast.Attribute | ast.Subscript)


def test_what_looks_for_dead_nodes_finds_them() -> None:
    source = "def forward(self, x):\n    a = self.p\n    b = x[0]\n    c = b + 1\n    return c\n"
    assert unread(source) == ["a"]


def test_operands_of_three_axes_hold_heads_with_the_batch() -> None:
    """The function of a core gives them back as they were."""
    module: Any = LLAMA.get_submodule("model.layers.0.self_attn")
    attend = type(module).surgery_functions["core0_attend"]
    new_k, new_v = torch.randn(2, 1, HEADS, NEW, FEATURES)

    def folded(t: Tensor) -> Tensor:
        return t.flatten(0, 1)

    q, k, v = torch.randn(3, 2, HEADS, 5, FEATURES)
    found = attend(module, new_k, new_v, folded(q), folded(k), folded(v))
    torch.testing.assert_close(found, folded(attend(module, new_k, new_v, q, k, v)))
