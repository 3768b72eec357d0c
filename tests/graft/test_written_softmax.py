"""Softmaxes that a model writes out: new keys have the share that the formula gives them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import surgery
from surgery.anatomy.read import read
from surgery.language.diagnostics import SurgeryError
from tests.graft.attending import in_front
from tests.laws.strategies import randomise_added
from tests.models import randomise

HEADS, FEATURES, NEW = 3, 4, 2
WIDTH = HEADS * FEATURES

Form = Callable[[Tensor], Tensor]


def shifted(x: Tensor) -> Tensor:
    """With the largest score taken off, as it is mostly written."""
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


def by_methods(x: Tensor) -> Tensor:
    e = x.sub(x.amax(-1, True)).exp()
    return e.div(e.sum(-1, True))


def in_place(x: Tensor) -> Tensor:
    x -= x.detach().amax(-1, keepdim=True)
    e = x.exp_()
    return e.divide(torch.sum(e, -1, keepdim=True))


def unshifted(x: Tensor) -> Tensor:
    e = x.exp()
    return e / e.sum(-1).unsqueeze(-1)


def with_epsilon(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return e / (torch.sum(e, dim=(-1,), keepdim=True) + 1e-6)


def off_by_one(x: Tensor) -> Tensor:
    """A softmax that may weigh nothing: with a key of score 0 and value 0, after Miller 2023."""
    e = torch.exp(x)
    return e / (1 + e.sum(-1)[..., None])


def by_logarithm(x: Tensor) -> Tensor:
    return torch.exp(x - torch.logsumexp(x, -1, keepdim=True))


def by_inverse(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e * (1 / e.sum(dim=-1, keepdim=True))


def by_reciprocal(x: Tensor) -> Tensor:
    e = x.exp()
    return e.mul(e.sum(-1, keepdim=True).clamp(min=1e-9).reciprocal())


def of_twos(x: Tensor) -> Tensor:
    """As kernels have it, whose processors know powers of two alone."""
    e = torch.exp2((x - x.amax(-1, keepdim=True)) * LOG2_E)
    return e / e.sum(axis=-1, keepdims=True)


def of_powers(x: Tensor) -> Tensor:
    e = 2 ** (x * LOG2_E)
    return e / e.sum(-1, keepdim=True)


def of_powers_by_function(x: Tensor) -> Tensor:
    e = torch.pow(math.e, x)
    return e * e.sum(-1, keepdim=True) ** -1


LOG2_E = math.log2(math.e)
FORMS: dict[str, Form] = {
    form.__name__: form
    for form in (
        *(shifted, by_methods, in_place, unshifted, with_epsilon, off_by_one, by_logarithm),
        *(by_inverse, by_reciprocal, of_twos, of_powers, of_powers_by_function),
    )
} | {
    "of one axis less": lambda x: torch.exp(x - x.logsumexp(-1)[..., None]),
    "special logarithm": lambda x: (x - torch.special.logsumexp(x, -1, keepdim=True)).exp(),
}
AT_ONCE: dict[str, Form] = {
    "logarithm": lambda x: x.log_softmax(-1).exp(),
    "by function": lambda x: torch.exp(nn.functional.log_softmax(x, dim=-1)),
    "by module": lambda x: nn.LogSoftmax(dim=-1)(x).exp_(),
    "special": lambda x: torch.special.softmax(x, -1),
    "special logarithm": lambda x: torch.special.log_softmax(x, -1).exp(),
    "in a dtype": lambda x: torch.softmax(x, -1, dtype=torch.float64).to(x.dtype),
    "of a copy": lambda x: nn.functional.softmax(x.double(), dim=-1).type_as(x),
    "of the negative": lambda x: nn.functional.softmin(-x, dim=-1),
    "that is safe": lambda x: torch._safe_softmax(x, -1),
}
"""What a function gives at once, but for an exponential or a cast."""


class Attention(nn.Module):
    """Self-attention whose softmax is in one of the forms above."""

    def __init__(self, form: Form, causal: bool = False, einsum: bool = False):
        super().__init__()
        self.form, self.causal, self.einsum = form, causal, einsum
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def operands(self, x: Tensor) -> list[Tensor]:
        parts = (self.q(x), self.k(x), self.v(x))
        return [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        scores = (torch.einsum("bhqd,bhkd->bhqk", q, k) if self.einsum else q @ k.mT) * 0.5
        if self.causal:
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(ahead, -1e4)
        made = self.form(scores) @ v
        return x + self.o(made.transpose(1, 2).flatten(2))


def by_hand(module: Attention, x: Tensor, new_k: Tensor, new_v: Tensor) -> Tensor:
    """The formula of the module on all keys."""
    q, k, v = module.operands(x)
    k, v = in_front(new_k, k), in_front(new_v, v)
    scores = q @ k.mT * 0.5
    if module.causal:
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(nn.functional.pad(ahead, (NEW, 0)), -1e4)
    return x + module.o((module.form(scores) @ v).transpose(1, 2).flatten(2))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*FORMS.values(), *AT_ONCE.values()]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 2**20),
)
def test_prefixes_join_by_the_formula(
    form: Form, causal: bool, einsum: bool, batch: int, length: int, seed: int
) -> None:
    """Outputs and gradients are those of the same formula on new and own keys."""
    torch.manual_seed(seed)
    module = randomise(Attention(form, causal, einsum), seed)
    example = torch.randn(2, 4, WIDTH)
    surgery.apply(module, f"on attention apply prefix({NEW})", example_inputs=example, seed=0)
    randomise_added(module)
    parts = dict(module.named_parameters())
    new = parts["prefix.K"], parts["prefix.V"]
    x = torch.randn(batch, length, WIDTH, requires_grad=True)
    found, expected = module(x), by_hand(module, x, *new)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(found.square().sum(), [x, *new])
    wanted = torch.autograd.grad(expected.square().sum(), [x, *new])
    torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*FORMS, *AT_ONCE])
def test_what_is_known_of_them(name: str) -> None:
    form = FORMS.get(name) or AT_ONCE[name]
    (site,) = read(randomise(Attention(form)), torch.randn(2, 5, WIDTH)).places["attention"]
    assert site.core is not None
    assert site.core.obstacle is None
    assert site.core.fixed == ("its softmax is written out" if name in FORMS else None)
    assert (site.core.how, site.core.heads, site.core.among) == ("products", HEADS, 1)


def halved(x: Tensor) -> Tensor:
    """No softmax: divided by something else."""
    e = x.exp()
    total = e.sum(-1, keepdim=True)
    return e / 2 + 0 * total


def over_queries(x: Tensor) -> Tensor:
    e = x.exp()
    return e / e.sum(-2, keepdim=True)


def of_squares(x: Tensor) -> Tensor:
    e = x.square()
    return e / e.sum(-1, keepdim=True)


def scaled_again(x: Tensor) -> Tensor:
    """A mask behind the softmax, and weights that sum to one after it."""
    weights = x.softmax(-1) * (x > -1)
    return weights / weights.sum(-1, keepdim=True)


def of_cubes(x: Tensor) -> Tensor:
    """Powers of scores, not of a number."""
    e = x.abs() ** 3
    return e / e.sum(-1, keepdim=True)


def times_the_total(x: Tensor) -> Tensor:
    e = x.exp()
    return e * e.sum(-1, keepdim=True)


def divided_by_weights(x: Tensor) -> Tensor:
    e = x.exp()
    return e.sum(-1, keepdim=True) / e


def logarithms(x: Tensor) -> Tensor:
    """Weights never come of these."""
    return x.log_softmax(-1)


def logarithms_of_quotients(x: Tensor) -> Tensor:
    return x - x.logsumexp(-1, keepdim=True)


def of_one_sum(x: Tensor) -> Tensor:
    """The total by a product with ones."""
    e = x.exp()
    return e / torch.einsum("bhqk->bhq", e)[..., None]


@pytest.mark.parametrize(
    "form",
    [halved, over_queries, of_squares, scaled_again, times_the_total, divided_by_weights],
)
def test_what_is_no_softmax_of_keys_is_an_error(form: Form) -> None:
    module = randomise(Attention(form))
    with pytest.raises(SurgeryError, match="S415"):
        surgery.plan(
            module, "on attention apply prefix(2)", example_inputs=torch.randn(2, 5, WIDTH)
        )


@pytest.mark.parametrize("form", [of_cubes, logarithms, logarithms_of_quotients, of_one_sum])
def test_where_no_weights_are_seen_there_is_no_attention(form: Form) -> None:
    module, x = randomise(Attention(form)), torch.randn(2, 5, WIDTH)
    with pytest.raises(SurgeryError, match="S301"):
        surgery.plan(module, "on attention apply prefix(2)", example_inputs=x)


def written_to(x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    torch.softmax(x * 1.0, -1, out=made)
    return made


def all_written_to(x: Tensor) -> Tensor:
    """Each function writes to a tensor that is there."""
    e = torch.exp(torch.mul(x, 2.0, out=torch.empty_like(x)), out=torch.empty_like(x))
    total = torch.sum(e, -1, keepdim=True, out=torch.empty(0))
    return torch.div(e, total, out=torch.empty_like(x))


def written_to_itself(x: Tensor) -> Tensor:
    made = torch.empty(0)
    torch.log_softmax(x, -1, out=made)
    return torch.exp(made, out=made)


@pytest.mark.parametrize("form", [written_to, all_written_to, written_to_itself])
def test_what_is_written_to_tensors_of_the_model_is_of_own_keys(form: Form) -> None:
    module, x = randomise(Attention(form)), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        surgery.apply(module, f"on attention apply prefix({NEW})", example_inputs=x, seed=0)
        randomise_added(module)
        parts = dict(module.named_parameters())
        expected = by_hand(module, x, parts["prefix.K"], parts["prefix.V"])
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_the_base_is_as_it_was() -> None:
    module, x = randomise(Attention(shifted)), torch.randn(2, 5, WIDTH)
    before = module(x)
    surgery.apply(module, "on attention apply prefix(2)", example_inputs=x, seed=0)
    assert not torch.equal(module(x), before)
    with surgery.disabled(module):
        assert torch.equal(module(x), before)
    surgery.remove(module)
    assert torch.equal(module(x), before)


@pytest.mark.slow
def test_they_compile_to_one_graph() -> None:
    torch._dynamo.reset()
    module, x = randomise(Attention(off_by_one)), torch.randn(2, 5, WIDTH)
    surgery.apply(module, "on attention apply prefix(2)", example_inputs=x, seed=0)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


SHIFTS: dict[str, Form] = {
    "without gradients": lambda x: x.detach().amax(-1, keepdim=True),
    "cut off after": lambda x: x.amax(-1, keepdim=True).detach(),
    "of one axis less": lambda x: x.max(-1).values.unsqueeze(-1),
    "of one axis less, by an index": lambda x: x.amax(-1)[..., None],
    "of one axis less, and more done": lambda x: torch.clamp(x.amax(-1), min=0.1).unsqueeze(-1),
    "the least": lambda x: torch.min(x, -1, keepdim=True)[0],
    "the mean": lambda x: x.mean(-1, keepdim=True),
    "one for all": lambda x: x.max(),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_scores_of_new_keys_are_shifted_as_the_others(shift: str) -> None:
    """Else new keys would weigh more or less than they should, and nobody would notice."""

    def form(x: Tensor) -> Tensor:
        return (x - SHIFTS[shift](x)).softmax(-1)

    module = randomise(Attention(form))
    x = torch.randn(2, 5, WIDTH)
    surgery.apply(module, f"on attention apply prefix({NEW})", example_inputs=x, seed=0)
    randomise_added(module)
    parts = dict(module.named_parameters())
    expected = by_hand(module, x, parts["prefix.K"], parts["prefix.V"])
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


IN_GRAPHS = {
    **FORMS,
    **AT_ONCE,
    **{f"shift: {n}": (lambda x, s=s: (x - s(x)).softmax(-1)) for n, s in SHIFTS.items()},
}
del IN_GRAPHS["by module"]  # a module made while it runs cannot be traced


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*IN_GRAPHS]), st.booleans(), st.integers(1, 3), st.integers(1, 6))
def test_nodes_of_a_graph_give_what_the_module_gives(
    name: str, causal: bool, batch: int, length: int
) -> None:
    """Nobody has run a graph when it is rewritten: its shapes are not known."""
    form, example = IN_GRAPHS[name], torch.randn(2, 5, WIDTH)
    spec = f"on attention apply prefix({NEW})"
    module, base = randomise(Attention(form, causal)), randomise(Attention(form, causal))
    traced = fx.GraphModule(base, fx.symbolic_trace(base).graph)
    for model in (module, traced):
        surgery.apply(model, spec, example_inputs=example, seed=0)
    randomise_added(module)
    traced.load_state_dict(module.state_dict())
    x = torch.randn(batch, length, WIDTH)
    torch.testing.assert_close(traced(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shifted", "of_twos", "by_inverse", "by_logarithm"])
def test_programs_give_what_the_module_gives(name: str) -> None:
    x, spec = torch.randn(2, 5, WIDTH), f"on attention apply prefix({NEW})"
    module = randomise(Attention(FORMS[name], causal=True))
    program = torch.export.export(randomise(Attention(FORMS[name], causal=True)), (x,))
    program = surgery.apply(program, spec, seed=0)
    surgery.apply(module, spec, example_inputs=x, seed=0)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-5)


UNSURE: dict[str, Form] = {
    "a quantile": lambda x: x.quantile(0.5, -1, keepdim=True),
    "the largest but one": lambda x: x.topk(2, -1).values[..., 1:],
    "a sum up to the last": lambda x: torch.logcumsumexp(x, -1)[..., -1:],
    "the mean over queries": lambda x: x.mean(2, keepdim=True),
}


@pytest.mark.parametrize("shift", UNSURE)
def test_what_may_be_another_number_for_each_key_is_an_error_in_graphs(shift: str) -> None:
    """Their shapes would tell, and are not known."""
    base = randomise(Attention(lambda x: (x - UNSURE[shift](x)).softmax(-1)))
    traced = fx.GraphModule(base, fx.symbolic_trace(base).graph)
    with pytest.raises(SurgeryError, match=r"S417|S415"):
        surgery.apply(
            traced, "on attention apply prefix(2)", example_inputs=torch.randn(2, 5, WIDTH)
        )
