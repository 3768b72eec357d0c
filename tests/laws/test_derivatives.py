"""Derivatives of adapted models: of first and second order, and under every transform of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import surgery
from surgery.planning.layers import read_layer
from tests.laws.derivatives import assert_derivatives, leaves
from tests.laws.reference import compose, matrix_of, run
from tests.laws.strategies import (
    EVERY,
    MERGING,
    SAME_PADDING,
    Case,
    Holder,
    added,
    cases,
    layers,
    randomise_added,
)
from tests.models import randomise

WIDE = (torch.float64,)
SMOOTH = tuple(rule for rule in EVERY if rule != "dora")
# Torch's forward-mode differentiation scripts some of its formulas when it is first used.
SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit.script")
pytestmark = [SAME_PADDING, SCRIPTS]


# An embedding's padding has no gradient, whatever the function says.
SHAPES = layers().filter(lambda kind: getattr(kind[0](), "padding_idx", None) is None)


def loss_of(model: nn.Module, names: list[str], call: dict[str, Any]) -> Callable[..., Tensor]:
    """A loss of the tensors that ``names`` name, of parameters or inputs, and of second order."""

    def loss(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        inputs = {n: given.pop(n, value) for n, value in call.items()}
        result = functional_call(model, given, (), inputs)
        result = result if isinstance(result, Tensor) else result.last_hidden_state
        weights = torch.arange(result.numel(), dtype=result.dtype).reshape(result.shape).cos()
        return (weights * result).sum() + result.square().sum()

    return loss


def tensors_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    inputs = {"x": x} if x.is_floating_point() else {}
    return {**inputs, **dict(model.named_parameters())}


def plain(case: Case) -> Callable[..., Tensor]:
    """The model of ``case`` as its formula says, in plain operations."""
    layer = case.make()
    kind = read_layer(layer)
    assert kind is not None

    def forward(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        weight = parameters["layer.weight"]
        W = matrix_of(layer, weight)
        b = parameters.get("layer.bias", torch.zeros(kind.out, dtype=weight.dtype))
        for number, method in enumerate(case.methods):
            prefix = f"layer.method{number}."
            given = {n.removeprefix(prefix): t for n, t in parameters.items() if prefix in n}
            W, b = compose(method, (W, b), given)
        return run(layer.to(weight.dtype), (W, b), x)

    return forward


@settings(max_examples=15, deadline=None)
@given(cases(SMOOTH, most=2, kinds=SHAPES, dtypes=WIDE, unmergeable=True))
def test_gradients_and_their_gradients_are_those_of_the_function(case: Case) -> None:
    """Also with dropout: the same seed drops the same, when differences are taken, too."""
    model, x = case.adapted(), case.input()
    tensors = tensors_of(model, x)
    names, given = list(tensors), leaves(list(tensors.values()))

    def function(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return functional_call(model, parameters, (parameters.pop("x", x),))

    assert gradcheck(function, given, fast_mode=True)
    assert gradgradcheck(function, given, fast_mode=True)


@settings(max_examples=20, deadline=None)
@given(cases(tuple(r for r in MERGING if r != "linear"), most=2, kinds=SHAPES, dtypes=WIDE))
def test_every_transform_gives_what_the_formula_gives(case: Case) -> None:
    model, x = case.adapted(), case.input()
    formula, tensors = plain(case), tensors_of(model, x)

    class Formula(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return formula(dict(self.inner.named_parameters()), x)

    names = list(tensors)
    ours = loss_of(model, names, {"x": x})
    known = loss_of(Formula(), [n if n == "x" else f"inner.{n}" for n in names], {"x": x})
    assert_derivatives(ours, list(tensors.values()), known)
    with torch.no_grad():
        torch.testing.assert_close(vmap(model)(torch.stack([x, x]))[1], model(x))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
    "empty": lambda x: x[:0],
    "one example": lambda x: x[0],
}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_tensors_may_want_gradients_and_inputs_lie_in_any_way(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(("lora(2, alpha = 3)", "dora(2)")))
    bias = data.draw(st.booleans())
    case = Case(
        lambda: nn.Linear(4, 3, bias=bias),
        lambda: LAYOUTS[layout](torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))),
        (f"apply {method}",),
        torch.float64,
        "",
    )
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    model, x = case.adapted(), case.input()
    tensors = tensors_of(model, x)
    wanted = data.draw(st.sets(st.sampled_from(list(tensors)), min_size=1))
    given = {n: t.detach().requires_grad_(n in wanted) for n, t in tensors.items()}
    found = functional_call(model, {n: t for n, t in given.items() if n != "x"}, (given["x"],))
    right = plain(case)(given, given["x"])
    torch.testing.assert_close(found, right)
    # The gradient of a sum is one number with strides of zero.
    pairs = [
        torch.autograd.grad(y.sum(), [given[n] for n in wanted], allow_unused=True)
        for y in (found, right)
    ]
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("method", ["lora(2, alpha = 3)", "dora(2)", "ia3", "shift"])
def test_whichever_gradients_are_asked_for_have_gradients(method: str) -> None:
    case = Case(
        lambda: nn.Linear(4, 3),
        lambda: torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),
        (f"apply {method}",),
        torch.float64,
        "",
    )
    model, x = case.adapted(), case.input()
    tensors = tensors_of(model, x)
    subsets = [s for size in (1, 2, len(tensors)) for s in combinations(tensors, size)]
    for wanted, asked in product(subsets, subsets):
        given = {n: t.detach().requires_grad_(n in wanted) for n, t in tensors.items()}
        found = functional_call(model, {n: t for n, t in given.items() if n != "x"}, (given["x"],))
        both = [given[n] for n in asked if n in wanted], [given[n] for n in wanted]
        if both[0]:
            results = (found, plain(case)(given, given["x"]))
            torch.testing.assert_close(*(twice_of(y, *both) for y in results))


def twice_of(y: Tensor, asked: list[Tensor], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Of the gradient of ``asked`` alone, its own gradient by all that is ``wanted``."""
    first = torch.autograd.grad(y.square().sum(), asked, create_graph=True, materialize_grads=True)
    whole = torch.stack([g.square().sum() for g in first]).sum()
    if not whole.requires_grad:
        return (whole,)
    return torch.autograd.grad(whole, wanted, materialize_grads=True)


@pytest.mark.parametrize("method", ["lora(2, dropout = 0.4)", "dora(2, dropout = 0.4)"])
def test_dropout_drops_the_same_in_every_derivative(method: str) -> None:
    model, x = randomise(Holder(nn.Linear(4, 3)), 1).double(), torch.randn(2, 5, 4).double()
    surgery.apply(model, f"on `layer` apply {method}", seed=0)
    randomise_added(model).train()
    torch.manual_seed(3)
    kept = torch.empty(x.shape, dtype=torch.bool).bernoulli_(0.6)
    tensors = tensors_of(model, x)
    name = method.split("(")[0]

    def formula(*values: Tensor) -> Tensor:
        p = {n.removeprefix(f"layer.{name}."): t for n, t in zip(tensors, values, strict=True)}
        W, A, B = p["layer.weight"], p["A"], p["B"]
        y = p["x"] @ W.t() + (p["x"] * kept / 0.6) @ A.t() @ B.t()
        if name == "dora":
            y = y * p["M"] / (W + B @ A).norm(dim=1).detach()
        return y + p["layer.bias"]

    def ours(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        given = dict(zip(tensors, values, strict=True))
        return functional_call(model, given, (given.pop("x"),))

    found, right = [], []
    for function, into in ((ours, found), (formula, right)):
        at = leaves(list(tensors.values()))
        first = torch.autograd.grad(function(*at).pow(3).sum(), at, create_graph=True)
        into += [*first, *torch.autograd.grad(sum(t.square().sum() for t in first), at)]
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)"])
def test_a_backward_under_autocast_is_as_precise_as_one_without(method: str) -> None:
    model, x = randomise(Holder(nn.Linear(4, 3)), 1), torch.randn(2, 5, 4, requires_grad=True)
    surgery.apply(model, f"on `layer` apply {method} train all", seed=0)
    randomise_added(model)
    wanted = [x, *model.parameters()]
    right = torch.autograd.grad(model(x).square().sum(), wanted)
    loss = model(x).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, wanted)
    torch.testing.assert_close(found, right)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("method", ["lora(2)", "ia3", "loha(2)"])
def test_gradients_of_complex_numbers_are_conjugated(method: str) -> None:
    model = surgery.apply(Holder(nn.Linear(4, 3)), f"on `layer` apply {method} train all", seed=0)
    randomise_added(model).to(torch.complex128)
    x = torch.randn(2, 5, 4, dtype=torch.complex128)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.5j)
    assert gradcheck(lambda *_: model(x), (x.requires_grad_(), *model.parameters()), fast_mode=True)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def attending() -> tuple[nn.Module, dict[str, Tensor]]:
    return Attending().train(), {"x": torch.randn(2, 3, 4)}


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import GPT2Config, GPT2Model

    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 11, "n_positions": 12}
    model = GPT2Model(GPT2Config(**sizes, **drop, attn_implementation="sdpa"))
    return model.eval(), {"input_ids": torch.arange(1, 9).reshape(2, 4)}


MODELS = [
    (gpt2, "on q|v apply lora(2, alpha = 3)"),
    (gpt2, "on q|v apply lora(2) as one on `c_attn` apply lora(1) as two"),
    (gpt2, "on k apply ia3 on q|k apply loha(1)"),
    (gpt2, "on attention apply prefix(2)"),
    (gpt2, "on attention gated prefix_mlp(2, width = 3)"),
    (gpt2, "on tokens apply prompt(2) on mlp gated parallel adapter(3, act = tanh)"),
    (gpt2, "on tokens p_tuning(2) prompt_lstm(3) on mlp pfeiffer adapter(3, act = gelu)"),
    (attending, "on q|v apply lora(2)"),
    (attending, "on v sequential adapter(2, act = tanh) on attention apply prefix(2)"),
    (attending, "on o apply lora(2) on k gated lora(2)"),
]


@pytest.mark.parametrize(("make", "spec"), MODELS, ids=lambda p: str(getattr(p, "__name__", p)))
def test_models_differentiate_in_every_way(make: Callable[..., Any], spec: str) -> None:
    model, call = make()
    randomise(model, 1).double()
    call = {n: t.double() if t.is_floating_point() else t for n, t in call.items()}
    surgery.apply(model, spec, example_inputs=call, seed=0)
    randomise_added(model)
    weights = {
        n: p for n, p in model.named_parameters() if n.endswith(("c_attn.weight", "in_proj_weight"))
    }
    tensors = {
        **weights,
        **added(model),
        **{n: t for n, t in call.items() if t.is_floating_point()},
    }
    with sdpa_kernel(SDPBackend.MATH):
        assert_derivatives(loss_of(model, list(tensors), call), list(tensors.values()))


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)"])
def test_experts_differentiate_in_every_way(method: str) -> None:
    """As with the changed weights of all experts in the base, whose norms are of half the width."""
    from transformers import MixtralConfig, MixtralModel

    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "vocab_size": 11}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_experts_per_tok"), 2)
    base = randomise(MixtralModel(MixtralConfig(**sizes, **heads, num_local_experts=3)), 1)
    base.set_experts_implementation("eager")
    base.double().eval()
    model, ids = copy.deepcopy(base), torch.arange(1, 9).reshape(2, 4)
    call = {"input_ids": ids}
    surgery.apply(model, f"on experts apply {method}", example_inputs=call, seed=0)
    randomise_added(model)
    weights = {n: p for n, p in base.named_parameters() if p.dim() == 3}
    tensors = {**weights, **added(model)}

    def known(*values: Tensor) -> Tensor:
        given = dict(zip(tensors, values, strict=True))
        changed: dict[str, Tensor] = {}
        for name in weights:
            owner, _, held = name.rpartition(".")
            prefix = f"{owner}.{method.split('(')[0]}.{held}."
            own = {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}
            each = [
                compose(method, (given[name][i], 0), {n: t[i] for n, t in own.items()})[0]
                for i in range(3)
            ]
            changed[name] = torch.stack(each)
        return loss_of(base, list(changed), call)(*changed.values())

    ours = loss_of(model, list(tensors), call)
    values = [t.detach() for t in tensors.values()]
    with sdpa_kernel(SDPBackend.MATH):
        assert_derivatives(ours, values, known, tolerance=1e-5, batches=False)
