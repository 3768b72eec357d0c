"""Methods of one attention, in any order: what changes its core, and what changes its result.

Where an attention is a region of several modules (BERT), the parameters of the first live in the module
that runs the core, and those of the second where the region ends.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from tests.laws.hosts import SUBJECTS
from tests.models import build

CORE = ["apply prefix(2)", "apply prefix_mlp(1, m = 3) as made", "apply shared_prefix(2) as shared"]
GATED = "gated prefix(1) as gated_one"
RESULT = [
    "sequential adapter(3, act = gelu)",
    "parallel adapter(2, act = tanh) as beside",
    "pfeiffer adapter(3, act = silu) as behind",
    "gated sequential adapter(2, act = tanh) as weighed",
]
MODELS = ["bert", "llama", "nanogpt"]


def inputs(name: str) -> dict[str, Tensor]:
    return SUBJECTS[name].inputs()


def fill(model: nn.Module) -> None:
    """Values for all that trains, each by its own name."""
    with torch.no_grad():
        for name, parameter in surgery.trainable(model).items():
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


def outcome(model: nn.Module, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """What the model gives, and the gradients of all that trains."""
    found: Any = model(**inputs(name))
    values = (
        found if isinstance(found, tuple) else (found if isinstance(found, Tensor) else found[0],)
    )
    first = values[0]
    trained = surgery.trainable(model)
    gradients = torch.autograd.grad(first.square().mean(), list(trained.values()))
    return first.detach(), dict(zip(trained, gradients, strict=True))


def applied(name: str, methods: tuple[str, ...], apart: bool, roles: tuple[str, ...]) -> nn.Module:
    model = build(name)
    statements = [f"on {role} {method}" for role, method in zip(roles, methods, strict=True)]
    for spec in statements if apart else ["\n".join(statements)]:
        surgery.apply(model, spec, example_inputs=inputs(name), seed=0)
    fill(model)
    return model


@cache
def in_turn(name: str, core: tuple[str, ...], result: tuple[str, ...]) -> Any:
    methods = core + result
    return outcome(applied(name, methods, False, ("attention",) * len(methods)), name)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_what_changes_the_core_may_stand_before_or_behind_what_changes_the_result(
    data: st.DataObject,
) -> None:
    """Outputs and gradients are the same, as long as each kind keeps its order; in one spec or several.

    A gate scales the change of a result that it can read, so a gated prefix stands before any other.
    """
    name = data.draw(st.sampled_from(MODELS))
    core = data.draw(st.lists(st.sampled_from(CORE), min_size=1, max_size=2, unique=True))
    result = data.draw(st.lists(st.sampled_from(RESULT), min_size=1, max_size=2, unique=True))
    first = data.draw(st.permutations([True] * len(core) + [False] * len(result)))
    left, right = iter(core), iter(result)
    methods = tuple(next(left) if is_core else next(right) for is_core in first)
    if data.draw(st.booleans()):
        methods, core = (GATED, *methods), [GATED, *core]
    model = applied(name, methods, data.draw(st.booleans()), ("attention",) * len(methods))
    output, gradients = outcome(model, name)
    expected, wanted = in_turn(name, tuple(core), tuple(result))
    torch.testing.assert_close(output, expected)
    assert gradients.keys() == wanted.keys()
    torch.testing.assert_close(dict(sorted(gradients.items())), dict(sorted(wanted.items())))
    assert all(bool(g.any()) for g in gradients.values())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    "role",
    [
        "attention",
        "o",
        "`*.attention.output`",
        "`*.attention.self`",
        "`*.layer.*.attention`",
        "layer",
    ],
)
def test_a_prefix_and_an_adapter_around_it_by_hand(role: str, order: tuple[int, int]) -> None:
    """At a region, a layer in it, a module in it, one around it: what a hook would add."""
    methods, roles = ("apply prefix(2)", "sequential adapter(3)"), ("attention", role)
    model = applied("bert", tuple(methods[i] for i in order), False, tuple(roles[i] for i in order))
    found = model(**inputs("bert"))[0]
    plain = build("bert")
    surgery.apply(plain, "on attention apply prefix(2)", seed=0)
    fill(plain)
    trained = surgery.trainable(model)
    owners = sorted({n.rpartition(".adapter.")[0] for n in trained if ".adapter." in n})
    assert len(owners) == 2

    def adapt(owner: str, output: Any) -> Any:
        h = output if isinstance(output, Tensor) else output[0]
        down, d0, up, u0 = (trained[f"{owner}.adapter.{n}"] for n in ("D", "d0", "U", "u0"))
        made = h + (h @ down.mT + d0).relu() @ up.mT + u0
        return made if isinstance(output, Tensor) else (made, *output[1:])

    for owner in owners:
        plain.get_submodule(owner).register_forward_hook(
            lambda _, __, output, owner=owner: adapt(owner, output)
        )
    torch.testing.assert_close(found, plain(**inputs("bert"))[0])


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("gone", ["prefix", "adapter"])
def test_either_can_be_removed(name: str, gone: str) -> None:
    """What stays gives the same bits as if it had always been alone."""
    texts = {
        "prefix": "on attention apply prefix(2)",
        "adapter": "on attention sequential adapter(3)",
    }
    model = build(name)
    for text in texts.values():
        surgery.apply(model, text, seed=0)
    fill(model)
    surgery.remove(model, gone)
    (stays,) = texts.keys() - {gone}
    alone = build(name)
    surgery.apply(alone, texts[stays], seed=0)
    fill(alone)
    given = inputs(name)
    assert torch.equal(model(**given)[0], alone(**given)[0])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("llama", "on mlp gated parallel adapter(2)", "on mlp parallel adapter(3) as plain"),
        ("llama", "on q gated lora(2)", "on q apply lora(3) as plain"),
        ("gpt2", "on q gated lora(2)", "on qkv apply lora(3) as plain"),
        ("gpt2", "on q gated lora(2)", "on k apply lora(3) as plain"),
    ],
)
def test_a_gate_may_stand_before_what_has_none(
    name: str, first: str, second: str, apart: bool
) -> None:
    """A rule that names the dims of its input leaves them to the next as they were."""

    def outputs(*specs: str) -> Tensor:
        model = build(name)
        for spec in specs:
            surgery.apply(model, spec, seed=0)
        fill(model)
        return model(**inputs("llama"))[0]

    texts = (first, second) if apart else (f"{first}\n{second}",)
    torch.testing.assert_close(outputs(*texts), outputs(second, first))
